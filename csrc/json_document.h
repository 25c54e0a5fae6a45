// JSON from strangers: bounded in size and depth, without a key that stands twice in an object.
#pragma once

#include <string_view>

#include <nlohmann/json.hpp>

namespace uf {

// A parsed text.  The destructor of nlohmann's trees allocates, and ends the process where there is no memory; this one
// takes its tree apart without.
class JsonDocument {
  public:
    // Throws UF_ERR_BAD_FILE with a message about `what`, such as "the header".
    JsonDocument(std::string_view text, const char *what);
    ~JsonDocument();
    JsonDocument(const JsonDocument &) = delete;
    JsonDocument &operator=(const JsonDocument &) = delete;

    const nlohmann::json &root() const { return root_; }

  private:
    nlohmann::json root_;
};

} // namespace uf
