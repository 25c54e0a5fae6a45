// What every reader of the engine file's JSON uses: typed, bounded access that says where in the document it failed.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "error.h"
#include "message.h"

namespace uf {

constexpr size_t longest_name = 256;

template <class... Parts> [[noreturn]] void bad(const Parts &...parts) {
    throw Error(UF_ERR_BAD_FILE, message("damaged engine file: ", parts..., "; freeze the network again"));
}

// Typed, bounded access to one JSON value; `where` is its path in the document, for messages.

class Value {
  public:
    Value(const nlohmann::json &value, std::string where) : value_(value), where_(std::move(where)) {}

    const std::string &where() const { return where_; }

    bool has(const char *key) const { return object().contains(key); }

    Value operator[](const char *key) const {
        const auto found = object().find(key);
        if (found == object().end())
            bad(where_.empty() ? "" : where_ + ": ", in_quotes(key), " is missing");
        return {*found, where_.empty() ? key : where_ + "." + key};
    }

    std::vector<Value> items(size_t least, size_t most) const {
        if (!value_.is_array())
            bad(where_, " must be a list, is ", shown());
        if (value_.size() < least || value_.size() > most)
            bad(where_, " has ", value_.size(), " items, expected ",
                least == most ? message(least) : message(least, " to ", most));
        std::vector<Value> result;
        result.reserve(value_.size());
        for (size_t i = 0; i < value_.size(); ++i)
            result.emplace_back(value_[i], where_ + '[' + std::to_string(i) + ']');
        return result;
    }

    bool is_null() const { return value_.is_null(); }

    void require_object() const { object(); }

    int64_t integer(int64_t low, int64_t high) const {
        const bool fits = value_.is_number_unsigned()
                              ? value_.get<uint64_t>() <= uint64_t{std::numeric_limits<int64_t>::max()}
                              : value_.is_number_integer();
        if (!fits || value_.get<int64_t>() < low || value_.get<int64_t>() > high)
            bad(where_, " must be an integer from ", low, " to ", high, ", is ", shown());
        return value_.get<int64_t>();
    }

    bool boolean() const {
        if (!value_.is_boolean())
            bad(where_, " must be true or false, is ", shown());
        return value_.get<bool>();
    }

    bool is_text() const { return value_.is_string(); }

    bool is_integer() const { return value_.is_number_integer(); }

    int small(int low, int high) const { return static_cast<int>(integer(low, high)); }

    float number(double low, double high) const {
        if (!value_.is_number() || !(value_.get<double>() >= low && value_.get<double>() <= high))
            bad(where_, " must be a number from ", low, " to ", high, ", is ", shown());
        return static_cast<float>(value_.get<double>());
    }

    const std::string &text(size_t longest) const {
        if (!value_.is_string())
            bad(where_, " must be a string, is ", shown());
        const std::string &result = value_.get_ref<const std::string &>();
        if (result.size() > longest)
            bad(where_, " has ", result.size(), " bytes, at most ", longest, " are allowed");
        return result;
    }

    const std::string &name() const {
        const std::string &result = text(longest_name);
        const auto control = [](char c) { return static_cast<unsigned char>(c) < 0x20U || c == 0x7F; };
        if (result.empty() || std::any_of(result.begin(), result.end(), control))
            bad(where_, " must be a name without control characters, is ", in_quotes(result));
        return result;
    }

    // The choice whose `name` member is the string.
    template <class Choice> Choice choice(std::initializer_list<std::pair<const char *, Choice>> choices) const {
        const std::string &given = text(longest_name);
        std::string accepted;
        for (const auto &[name, choice] : choices) {
            if (given == name)
                return choice;
            accepted += accepted.empty() ? name : message(", ", name);
        }
        bad(where_, " must be one of ", accepted, ", is ", in_quotes(given));
    }

    template <size_t count> std::array<int, count> integers(int low, int high) const {
        std::array<int, count> result{};
        const std::vector<Value> values = items(count, count);
        for (size_t i = 0; i < count; ++i)
            result[i] = values[i].small(low, high);
        return result;
    }

  private:
    const nlohmann::json &object() const {
        if (!value_.is_object())
            bad(where_.empty() ? "the document" : where_, " must be an object, is ", shown());
        return value_;
    }

    std::string shown() const {
        if (value_.is_string())
            return in_quotes(value_.get_ref<const std::string &>());
        return value_.is_structured() ? message("a list or object of ", value_.size(), " items") : value_.dump();
    }

    const nlohmann::json &value_;
    std::string where_;
};

} // namespace uf
