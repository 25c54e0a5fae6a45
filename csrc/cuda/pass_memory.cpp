#include "cuda/pass_memory.h"

#include <algorithm>
#include <limits>

#include "cuda/pass_graph.h"
#include "error.h"
#include "images.h"
#include "message.h"

namespace uf::cuda {

namespace {

constexpr int64_t alignment = 256;
constexpr int64_t widest_row = int64_t{1} << 25; // elements: kernels address within a few rows by 32 bits
static_assert(transform_bytes == 8 * sizeof(float), "kernels read scale[4], shift[4]");

void check_shape(const Plan &plan, const PassShape &shape) {
    constexpr int64_t largest = std::numeric_limits<int32_t>::max();
    for (const Buffer &buffer : plan.buffers) {
        const int64_t height = buffer.height.at(shape.height), width = buffer.width.at(shape.width);
        if (height > largest || width > largest || width * buffer.channels > widest_row)
            throw Error(UF_ERR_INVALID_ARGUMENT,
                        message("an image of ", shape.height, " x ", shape.width,
                                " pixels is too wide for one pass on a GPU: ", in_quotes(buffer.name), " has ", width,
                                " x ", buffer.channels, " values per row, at most ", widest_row,
                                " are possible; use smaller tiles"));
    }
}

std::vector<int64_t> slot_bytes(const Program &program, const PassShape &shape) {
    const Plan &plan = program.plan();
    const int64_t element = element_bytes(storage_of(program.selection().precision));
    std::vector<int64_t> slots(static_cast<size_t>(plan.slots), 0);
    for (const Buffer &buffer : plan.buffers) {
        if (buffer.slot < 0)
            continue;
        int64_t &slot = slots[static_cast<size_t>(buffer.slot)];
        slot = std::max(slot, checked_product({shape.count, buffer.height.at(shape.height),
                                               buffer.width.at(shape.width), buffer.channels, element}));
    }
    return slots;
}

} // namespace

int64_t image_bytes(const Plan &plan, const PassShape &shape, PixelType type) {
    return checked_product(
        {shape.count, shape.height, shape.width, plan.channels, static_cast<int64_t>(pixel_bytes(type))});
}

int64_t probability_bytes(const Plan &plan, const PassShape &shape) {
    return checked_product({shape.count, shape.height, shape.width, plan.output_channels, sizeof(float)});
}

size_t Ranges::take(int64_t bytes) {
    const int64_t offset = bytes_;
    bytes_ = checked_product({bytes_ + (bytes + alignment - 1) / alignment * alignment});
    return static_cast<size_t>(offset);
}

PassMemory allocate_pass_memory(const Program &program, const PassShape &shape) {
    const Plan &plan = program.plan();
    check_shape(plan, shape);
    int64_t zeroed = 0, scratch = 0;
    for (const Step &step : program.selection().steps) {
        const LaunchSizes sizes = launch_sizes(plan, *step.op, shape);
        for (const std::vector<Candidate> &candidates : step.candidates)
            for (const Candidate &candidate : candidates)
                if (program.has_loaded(candidate))
                    for (const KernelArgument &argument : candidate.kernel->arguments)
                        if (argument.kind == KernelArgument::Kind::scratch) {
                            int64_t &bytes = argument.zeroed ? zeroed : scratch;
                            bytes = std::max(bytes, axis_value(argument.bytes, sizes));
                        }
    }
    Ranges layout;
    std::vector<size_t> slot_offsets;
    for (const int64_t bytes : slot_bytes(program, shape))
        slot_offsets.push_back(layout.take(bytes));
    const size_t zeroed_offset = layout.take(zeroed), scratch_offset = layout.take(scratch);
    const size_t image = layout.take(image_bytes(plan, shape, PixelType::float32));
    const size_t result = layout.take(probability_bytes(plan, shape));
    const size_t transforms = layout.take(shape.count * transform_bytes);

    PassMemory places;
    places.memory = allocate_device(program.device(), layout.bytes());
    places.bytes = layout.bytes();
    const CUdeviceptr base = places.memory.get();
    for (const size_t offset : slot_offsets)
        places.slots.push_back(base + offset);
    places.zeroed = base + zeroed_offset;
    places.zeroed_bytes = static_cast<size_t>(zeroed);
    places.scratch = base + scratch_offset;
    places.image = base + image;
    places.result = base + result;
    places.transforms = base + transforms;
    return places;
}

} // namespace uf::cuda
