// The one exception type inside the library; c_api.cpp turns it into a status and a message.
#pragma once

#include <stdexcept>
#include <string>

#include "unet_fast.h"

namespace uf {

class Error : public std::runtime_error {
  public:
    Error(uf_status status, const std::string &message) : std::runtime_error(message), status_(status) {}
    uf_status status() const { return status_; }

  private:
    uf_status status_;
};

} // namespace uf
