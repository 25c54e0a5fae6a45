#include "json_document.h"

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "json_value.h"

namespace uf {

namespace {

using nlohmann::json;

// Far above what any network needs, low enough that a hostile file cannot make the reader work or allocate for long.
constexpr int64_t most_values = 1 << 20;
constexpr size_t most_depth = 32;

// Builds the tree in `root`, of which it never moves or frees a part that has parts itself.
class Builder : public nlohmann::json_sax<json> {
  public:
    Builder(json &root, std::string_view text, const char *what) : root_(root), text_(text), what_(what) {}

    bool null() override { return add(nullptr); }
    bool boolean(bool value) override { return add(value); }
    bool number_integer(number_integer_t value) override { return add(value); }
    bool number_unsigned(number_unsigned_t value) override { return add(value); }
    bool number_float(number_float_t value, const string_t &) override { return add(value); }
    bool string(string_t &value) override { return add(std::move(value)); }
    bool binary(binary_t &) override { return false; } // which JSON has not
    bool start_object(size_t) override { return open(json::object()); }
    bool start_array(size_t) override { return open(json::array()); }
    bool end_object() override { return close(); }
    bool end_array() override { return close(); }

    bool key(string_t &name) override {
        const auto [place, is_new] = open_.back()->get_ref<json::object_t &>().emplace(name, nullptr);
        if (!is_new)
            bad(what_, " has the key ", in_quotes(name), " twice");
        place_ = &place->second;
        return true;
    }

    bool parse_error(size_t position, const std::string &, const nlohmann::detail::exception &error) override {
        constexpr int number_overflow = 406;
        if (error.id == number_overflow)
            bad(what_, " holds a number that no double can hold");
        bad(what_, " is not valid JSON at byte ", position, " of ", text_.size());
    }

  private:
    // Puts a value behind the last one of an array or under the last key of an object.
    bool add(json value) {
        if (++values_ > most_values)
            bad(what_, " has more than ", most_values, " values");
        if (open_.empty()) {
            place_ = &root_;
        } else if (open_.back()->is_array()) {
            open_.back()->get_ref<json::array_t &>().emplace_back();
            place_ = &open_.back()->back();
        }
        *place_ = std::move(value);
        return true;
    }

    bool open(json empty) {
        if (open_.size() == most_depth)
            bad(what_, " is nested deeper than ", most_depth);
        add(std::move(empty));
        open_.push_back(place_);
        return true;
    }

    bool close() {
        open_.pop_back();
        return true;
    }

    json &root_;
    const std::string_view text_;
    const char *const what_;
    std::vector<json *> open_; // arrays and objects, the innermost last: each is the last part of the one before
    json *place_ = nullptr;    // of the next value, where it is in an object
    int64_t values_ = 0;
};

// Empties arrays and objects from the inside; destroying an empty one allocates nothing.
void take_apart(json &value) {
    if (auto *const array = value.get_ptr<json::array_t *>()) {
        for (json &item : *array)
            take_apart(item);
        array->clear();
    } else if (auto *const object = value.get_ptr<json::object_t *>()) {
        for (auto &[key, item] : *object)
            take_apart(item);
        object->clear();
    }
}

} // namespace

JsonDocument::JsonDocument(std::string_view text, const char *what) {
    try {
        Builder builder(root_, text, what);
        json::sax_parse(text.begin(), text.end(), &builder);
    } catch (...) {
        take_apart(root_);
        throw;
    }
}

JsonDocument::~JsonDocument() { take_apart(root_); }

} // namespace uf
