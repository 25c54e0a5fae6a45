// How much processor time this process is granted.
#pragma once

#include <string>

namespace uf {

// Processors that the control groups (cgroups, version 2 or 1) at `folder` grant, at least 1: a container may see more.
// The largest int where there is no limit.
int processors_of_quota(const std::string &folder);

} // namespace uf
