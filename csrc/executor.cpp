#include "executor.h"

#include <unistd.h>

#include "message.h"

namespace uf {

void require_memory(const PassShape &shape, double bytes) {
    const double machine_bytes =
        static_cast<double>(sysconf(_SC_PHYS_PAGES)) * static_cast<double>(sysconf(_SC_PAGE_SIZE));
    if (bytes > machine_bytes)
        throw Error(UF_ERR_OUT_OF_MEMORY,
                    message("one pass over ", shape.count, " image(s) of ", shape.height, " x ", shape.width,
                            " pixels needs at least ", bytes / 1e9, " GB, this machine has ", machine_bytes / 1e9,
                            " GB; use smaller or fewer images in a pass, such as tiling fast or exact, or a smaller "
                            "tile"));
}

} // namespace uf
