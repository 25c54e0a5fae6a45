// For the C++ test programs: whether a call is refused for the right reason.
#pragma once

#include <cstdio>
#include <exception>
#include <functional>
#include <string>

// True where the call throws something that says `text`.
inline bool refused(const char *text, const std::function<void()> &call) {
    try {
        call();
    } catch (const std::exception &error) {
        if (std::string(error.what()).find(text) != std::string::npos)
            return true;
        std::fprintf(stderr, "expected ...%s..., got: %s\n", text, error.what());
    }
    return false;
}
