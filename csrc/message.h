// Text of error messages.
#pragma once

#include <cstddef>
#include <locale>
#include <sstream>
#include <string>
#include <string_view>

namespace uf {

// The parts one after the other, the same in every locale of the calling program.
template <class... Parts> std::string message(const Parts &...parts) {
    std::ostringstream stream;
    stream.imbue(std::locale::classic());
    (stream << ... << parts);
    return stream.str();
}

// The character, '?' for one that would break the line or act on a terminal.
inline char printable(char character) {
    return static_cast<unsigned char>(character) < 0x20U || character == 0x7F ? '?' : character;
}

// A name out of a file or from a caller, in quotes, without control characters and not too long to read.
inline std::string in_quotes(std::string_view name) {
    constexpr size_t longest = 80;
    size_t length = name.size();
    if (length > longest) {
        length = longest;
        while (length > 0 && (static_cast<unsigned char>(name[length]) & 0xC0U) == 0x80U)
            --length; // not inside a UTF-8 character
    }
    std::string result = "'";
    for (const char character : name.substr(0, length))
        result += printable(character);
    return result + (length < name.size() ? "...'" : "'");
}

// "[1, 2, 3]"
template <class Numbers> std::string list(const Numbers &numbers) {
    std::string result = "[";
    for (const auto number : numbers)
        result += (result.size() > 1 ? ", " : "") + std::to_string(number);
    return result + "]";
}

} // namespace uf
