#include "int8_pass.h"

#include <algorithm>

#include "convolution.h"
#include "cpu_features.h"
#include "plain_ops.h"

namespace uf {
namespace {

// Height and width of what a head computes.
struct Sides {
    int64_t height, width;
};

Sides head_sides(const Op &op, const Planes &from) {
    return {from.height + op.padding[0] + op.padding[2] - op.kernel[0] + 1,
            from.width + op.padding[1] + op.padding[3] - op.kernel[1] + 1};
}

// Scratch of a head for `rows` rows, in floats: its features and logits as planes, and a row of logits pixel by pixel.
struct HeadScratch {
    int64_t rows, row_floats, plane_floats, features, logits, row;

    HeadScratch(const PlaneConvolution &convolution, const Int8Kernels &kernels, int64_t width, int outputs)
        : rows(rows_for_full_blocks(convolution, kernels, width)), row_floats(divide_up(width, 16) * 16),
          plane_floats(rows * row_floats), features(convolution.groups * plane_outputs * plane_floats),
          logits(outputs * plane_floats), row(outputs * row_floats) {}

    size_t bytes() const { return sizeof(float) * static_cast<size_t>(features + logits + row); }
};

// Groups that share the work of placing a block: so many that their weights stay in the innermost cache beside pixels.
int groups_at_once(const PlaneConvolution &convolution) {
    constexpr int64_t weights_beside_pixels = int64_t{1} << 13;
    return static_cast<int>(std::max<int64_t>(1, weights_beside_pixels / convolution.group_bytes));
}

template <class Element>
void quantise_row(const Activations &from, const Planes &to, float multiplier, int64_t image, int64_t y) {
    for (int plane = 0; plane < to.planes; ++plane) {
        auto *target = reinterpret_cast<uint8_t *>(to.row(image, plane, y));
        const auto *source = from.pixel_as<Element>(image, y, 0) + 4 * plane;
        const int channels = std::min(4, from.channels - 4 * plane);
        for (int64_t x = 0; x < to.width; ++x, source += from.padded_channels, target += 4) {
            for (int c = 0; c < 4; ++c)
                target[c] = c < channels ? nearest_byte(to_float(source[c]) * multiplier) : uint8_t{0};
        }
    }
}

template <class Element>
void dequantise_row(const Planes &from, const Activations &to, float scale, int64_t image, int64_t y) {
    for (int64_t x = 0; x < to.width; ++x) {
        auto *target = to.pixel_as<Element>(image, y, x);
        for (int c = 0; c < to.padded_channels; ++c) {
            const auto *source = reinterpret_cast<const uint8_t *>(from.row(image, c / 4, y)) + 4 * x + c % 4;
            from_float(c < to.channels ? static_cast<float>(*source) * scale : 0.0F, target[c]);
        }
    }
}

} // namespace

Int8Program::Int8Program(const Plan &of, const std::string &isa) : plan(of), kernels(choose_int8_kernels(isa)) {
    for (const Op &op : plan.ops) {
        convolutions.emplace_back();
        winograd.emplace_back();
        if (op.winograd)
            winograd.back() = prepare_plane_winograd(op, plan, kernels);
        else if (op.int8 || (op.kind == OpKind::stem && runs(op)))
            convolutions.back() = prepare_plane_convolution(op, plan, kernels);
    }
}

Int8Buffers::Int8Buffers(const Int8Program &program, const PassShape &shape, const std::vector<int> &halos)
    : program_(program), shape_(shape) {
    for (size_t i = 0; i < program.plan.buffers.size(); ++i) {
        const Buffer &buffer = program.plan.buffers[i];
        Planes planes;
        planes.height = static_cast<int>(buffer.height.at(shape.height));
        planes.width = static_cast<int>(buffer.width.at(shape.width));
        planes.planes = static_cast<int>(divide_up(buffer.channels, 4));
        planes.halo = halos[i];
        planes.lay_out();
        planes_.push_back(planes);
    }
    image_ = planes_[0];
    image_.planes = program.plan.channels;
    image_.lay_out();
}

size_t Int8Buffers::bytes_of(const Planes &planes) const {
    return static_cast<size_t>(planes.image_stride * shape_.count + Planes::lead + Planes::tail);
}

size_t Int8Buffers::buffer_bytes(size_t buffer) const { return bytes_of(planes_[buffer]); }

size_t Int8Buffers::image_bytes() const {
    const std::vector<Op> &ops = program_.plan.ops;
    const bool has_stem = std::any_of(ops.begin(), ops.end(),
                                      [](const Op &op) { return op.kind == OpKind::stem && Int8Program::runs(op); });
    return has_stem ? bytes_of(image_) : 0;
}

size_t Int8Buffers::scratch_bytes() const {
    size_t bytes = head_scratch_bytes();
    for (size_t i = 0; i < program_.winograd.size(); ++i) {
        if (!program_.winograd[i])
            continue;
        const Planes &to = planes_[static_cast<size_t>(program_.plan.ops[i].outputs[0])];
        bytes = std::max(bytes, static_cast<size_t>(WinogradBands(*program_.winograd[i], to.height, to.width).bytes));
    }
    return bytes;
}

size_t Int8Buffers::head_scratch_bytes() const {
    const Op &last = program_.plan.ops.back();
    const std::optional<PlaneConvolution> &convolution = program_.convolutions.back();
    if (!convolution)
        return 0;
    const Planes &from = planes_[static_cast<size_t>(last.inputs[0])];
    return HeadScratch(*convolution, program_.kernels, head_sides(last, from).width, program_.plan.output_channels)
        .bytes();
}

void Int8Buffers::place_buffer(size_t buffer, std::byte *memory) {
    planes_[buffer].data = memory + planes_[buffer].offset();
}

void Int8Buffers::place_image(std::byte *memory) { image_.data = memory + image_.offset(); }

void Int8Buffers::run(size_t index, const Pass &pass, const Activations *activations, ThreadPool &pool,
                      std::byte *scratch, size_t scratch_size) const {
    const Op &op = program_.plan.ops[index];
    switch (op.kind) {
    case OpKind::quantise:
        quantise(op, activations[op.inputs[0]], pass.count, pool);
        break;
    case OpKind::dequantise:
        dequantise(op, activations[op.outputs[0]], pass.count, pool);
        break;
    case OpKind::head:
        head(op, *program_.convolutions[index], pass, pool, scratch, scratch_size);
        break;
    case OpKind::stem:
        normalise(pass, pool);
        convolve(op, *program_.convolutions[index], pass.count, pool);
        break;
    default:
        if (program_.winograd[index])
            convolve(op, *program_.winograd[index], pass.count, pool, scratch, scratch_size);
        else
            convolve(op, *program_.convolutions[index], pass.count, pool);
        break;
    }
}

// A task is some rows of some groups: of all, so that the rows that are read stay in the innermost cache, or of one
// where that makes too few tasks, or where the weights of all are many and those of one had better stay.
void Int8Buffers::convolve(const Op &op, const PlaneConvolution &convolution, int count, ThreadPool &pool) const {
    const Int8Kernels &kernels = program_.kernels;
    const Planes *sources[2] = {};
    for (size_t i = 0; i < op.inputs.size(); ++i)
        sources[i] = op.kind == OpKind::stem ? &image_ : &planes_[static_cast<size_t>(op.inputs[i])];
    const Planes &to = planes_[static_cast<size_t>(op.outputs[0])];
    const Planes *pooled = op.outputs.size() == 2 ? &planes_[static_cast<size_t>(op.outputs[1])] : nullptr;
    const int64_t height = to.height, rows = rows_for_full_blocks(convolution, kernels, to.width);
    const int64_t bands = divide_up(height, rows), groups = convolution.groups;
    constexpr int64_t weights_that_stay = int64_t{1} << 16;
    const bool few = count * bands < 8 * static_cast<int64_t>(pool.threads());
    const int64_t split = few || convolution.group_bytes * groups > weights_that_stay ? groups : 1;
    const int64_t each = groups_at_once(convolution);

    pool.run(split * count * bands, [&](int64_t task, int) {
        const int64_t part = task / (count * bands), image = task / bands % count;
        const int64_t begin = task % bands * rows, end = std::min(begin + rows, height);
        const int64_t last_group = (part + 1) * groups / split;
        for (int64_t group = part * groups / split; group < last_group; group += each) {
            const int64_t stop = std::min(group + each, last_group);
            convolve_planes(convolution, kernels, sources,
                            {image, static_cast<int>(group), static_cast<int>(stop), begin, end, height, to.width},
                            {to.row(image, group, begin), to.row_stride, 0, to.plane_stride});
            for (int64_t plane = group; plane < stop; ++plane)
                finish_plane(to, pooled, image, plane, begin, end);
        }
    });
}

// A task is a band, or some groups of one where there are too few bands; each of these transforms the windows anew.
void Int8Buffers::convolve(const Op &op, const PlaneWinograd &convolution, int count, ThreadPool &pool,
                           std::byte *scratch, size_t scratch_size) const {
    const Planes *sources[2] = {};
    for (size_t i = 0; i < op.inputs.size(); ++i)
        sources[i] = &planes_[static_cast<size_t>(op.inputs[i])];
    const Planes &to = planes_[static_cast<size_t>(op.outputs[0])];
    const Planes *pooled = op.outputs.size() == 2 ? &planes_[static_cast<size_t>(op.outputs[1])] : nullptr;
    const WinogradBands bands(convolution, to.height, to.width);
    const int64_t lots = convolution.lots, tasks = count * bands.bands;
    // Below 64 outputs transforms take more than a tenth of a task.
    constexpr int64_t least_lots = 16 / PlaneWinograd::lot;
    const int64_t wanted = pool.threads() == 1 ? 1 : divide_up(4 * int64_t{pool.threads()}, tasks);
    const int64_t split = std::clamp(wanted, int64_t{1}, std::max(int64_t{1}, lots / least_lots));

    pool.run(split * tasks, [&](int64_t task, int worker) {
        const int64_t part = task / tasks, image = task / bands.bands % count, band = task % bands.bands;
        const auto first = static_cast<int>(part * lots / split), last = static_cast<int>((part + 1) * lots / split);
        convolve_winograd(convolution, program_.kernels, sources, to, bands, image, band, first, last,
                          scratch + static_cast<size_t>(worker) * scratch_size);
        const int64_t begin = band * bands.rows, end = std::min<int64_t>(begin + bands.rows, to.height);
        for (int plane = convolution.first_group(first); plane < convolution.first_group(last); ++plane)
            finish_plane(to, pooled, image, plane, begin, end);
    });
}

// The frame of rows [begin, end) of one plane that were just written, and the pooled rows behind them.
void Int8Buffers::finish_plane(const Planes &to, const Planes *pooled, int64_t image, int64_t plane, int64_t begin,
                               int64_t end) const {
    for (int64_t y = begin; y < end; ++y)
        to.clear_frame(image, plane, y);
    if (pooled == nullptr)
        return;
    for (int64_t y = begin; y + 1 < end; y += 2) {
        program_.kernels.pool({reinterpret_cast<const char *>(to.row(image, plane, y)),
                               reinterpret_cast<const char *>(to.row(image, plane, y + 1)),
                               reinterpret_cast<char *>(pooled->row(image, plane, y / 2)), pooled->width});
        pooled->clear_frame(image, plane, y / 2);
    }
}

void Int8Buffers::head(const Op &op, const PlaneConvolution &convolution, const Pass &pass, ThreadPool &pool,
                       std::byte *scratch, size_t scratch_size) const {
    const Int8Kernels &kernels = program_.kernels;
    const Plan &plan = program_.plan;
    const Planes *const source = &planes_[static_cast<size_t>(op.inputs[0])];
    const auto [height, width] = head_sides(op, *source);
    const HeadScratch parts(convolution, kernels, width, plan.output_channels);
    const int64_t rows = parts.rows, bands = divide_up(height, rows);
    const int outputs = plan.output_channels;

    pool.run(pass.count * bands, [&, height = height, width = width](int64_t task, int worker) {
        const int64_t image = task / bands, begin = task % bands * rows, end = std::min(begin + rows, height);
        auto *features = reinterpret_cast<float *>(scratch + static_cast<size_t>(worker) * scratch_size);
        float *logits = features + parts.features, *row = logits + parts.logits;
        constexpr auto bytes = static_cast<int64_t>(sizeof(float));
        const int64_t plane = parts.plane_floats * bytes;
        const int each = groups_at_once(convolution);
        for (int group = 0; group < convolution.groups; group += each) {
            float *of_group = features + group * plane_outputs * parts.plane_floats;
            convolve_planes(
                convolution, kernels, &source,
                {image, group, std::min(group + each, convolution.groups), begin, end, height, width},
                {reinterpret_cast<std::byte *>(of_group), parts.row_floats * bytes, plane, plane_outputs * plane});
        }
        kernels.head({features, parts.plane_floats, op.tensor("head_weight").values.data(),
                      op.tensor("head_bias").values.data(), convolution.channels, outputs, logits,
                      (end - begin) * parts.row_floats});
        for (int64_t y = begin; y < end; ++y) {
            const float *of_row = logits + (y - begin) * parts.row_floats;
            if (outputs > 1) {
                for (int output = 0; output < outputs; ++output)
                    for (int64_t x = 0; x < width; ++x)
                        row[x * outputs + output] = of_row[output * parts.plane_floats + x];
                of_row = row;
            }
            write_result_row(plan.output_kind, outputs, pass.logit_threshold, of_row, outputs, width,
                             pass.outputs[image], y);
        }
    });
}

void Int8Buffers::normalise(const Pass &pass, ThreadPool &pool) const {
    pool.run(static_cast<int64_t>(pass.count) * image_.height, [&](int64_t task, int) {
        const int64_t image = task / image_.height, y = task % image_.height;
        for (int channel = 0; channel < image_.planes; ++channel) {
            ImageView view = pass.images[image];
            view.data += channel * view.channel_stride;
            PixelTransform transform;
            transform.scale[0] = pass.transforms[image].scale[channel];
            transform.shift[0] = pass.transforms[image].shift[channel];
            Activations plane;
            plane.data = image_.row(0, channel, 0);
            plane.height = image_.height;
            plane.width = image_.width;
            plane.channels = plane.padded_channels = 1;
            plane.pixel_stride = Planes::pixel_bytes;
            plane.row_stride = image_.row_stride;
            plane.image_stride = image_.image_stride;
            normalise_row(view, transform, plane, image, y);
            image_.clear_frame(image, channel, y);
        }
    });
}

void Int8Buffers::quantise(const Op &op, const Activations &from, int count, ThreadPool &pool) const {
    const Planes &to = planes_[static_cast<size_t>(op.outputs[0])];
    const float multiplier = 1.0F / op.output_scale;
    pool.run(static_cast<int64_t>(count) * to.height, [&](int64_t task, int) {
        const int64_t image = task / to.height, y = task % to.height;
        (from.bf16 ? quantise_row<Bf16> : quantise_row<float>)(from, to, multiplier, image, y);
        for (int plane = 0; plane < to.planes; ++plane)
            to.clear_frame(image, plane, y);
    });
}

void Int8Buffers::dequantise(const Op &op, const Activations &to, int count, ThreadPool &pool) const {
    const Planes &from = planes_[static_cast<size_t>(op.inputs[0])];
    const float scale = program_.plan.buffers[static_cast<size_t>(op.inputs[0])].scale;
    pool.run(static_cast<int64_t>(count) * to.height, [&](int64_t task, int) {
        const int64_t image = task / to.height, y = task % to.height;
        (to.bf16 ? dequantise_row<Bf16> : dequantise_row<float>)(from, to, scale, image, y);
        to.clear_frame(image, y);
    });
}

} // namespace uf
