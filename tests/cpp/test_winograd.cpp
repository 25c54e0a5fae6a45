// Each form of winograd.h against plain loops in float64, on random shapes: channels that fill no vector, sides that no
// tile divides, paddings, crops, several images.
//
//     test_winograd [first seed [number of seeds]]
//
// Whatever lies around the inputs and in the memory that the passes use is NaN, so that a value read from there shows.
// Exits with 1 after the first case that fails.

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <random>
#include <string>

#include "cpu/cpu_features.h"
#include "cpu/winograd.h"
#include "error.h"

namespace {

using namespace uf;

constexpr float nan = std::numeric_limits<float>::quiet_NaN();

class Random {
  public:
    explicit Random(unsigned seed) : generator_(seed) {}
    int integer(int low, int high) { return std::uniform_int_distribution<int>(low, high)(generator_); }
    float normal() { return std::normal_distribution<float>()(generator_); }
    int channels() { return std::initializer_list<int>{1, 3, 8, 16, 17, 24, 40, 64, 150, 270}.begin()[integer(0, 9)]; }
    float magnitude = 1.0F; // of pixels

  private:
    std::mt19937 generator_;
};

void add_tensor(Op &op, Random &random, const char *name, int64_t size, int terms) {
    Tensor tensor;
    tensor.shape = {size};
    std::vector<float> values;
    for (int64_t i = 0; i < size; ++i)
        values.push_back(random.normal() / std::sqrt(static_cast<float>(terms)));
    tensor.values = std::move(values);
    op.tensors.emplace_back(name, std::move(tensor));
}

// Memory in which every float is NaN.
AlignedMemory poisoned(int64_t bytes) {
    AlignedMemory memory(static_cast<size_t>(bytes));
    std::fill_n(memory.floats(), bytes / static_cast<int64_t>(sizeof(float)), nan);
    return memory;
}

// A tensor with a frame, between pages of NaN.
struct Guarded {
    Activations layout;
    AlignedMemory memory;

    Guarded(int images, int height, int width, int channels, int lanes, int halo) {
        layout.height = height;
        layout.width = width;
        layout.channels = channels;
        layout.padded_channels = round_up(channels, lanes);
        layout.halo = halo;
        layout.lay_out();
        constexpr int64_t guard = 4096;
        memory = poisoned(2 * guard + images * layout.image_stride);
        layout.data = memory.data() + guard + layout.offset();
    }

    float &at(int image, int y, int x, int channel) const { return layout.pixel_as<float>(image, y, x)[channel]; }
};

// Random values inside, zeros in the frame and in padding channels.
Guarded random_input(Random &random, int images, int height, int width, int channels, int lanes, int halo) {
    Guarded result(images, height, width, channels, lanes, halo);
    for (int image = 0; image < images; ++image) {
        for (int y = -halo; y < height + halo; ++y) {
            for (int x = -halo; x < width + halo; ++x) {
                const bool inside = y >= 0 && y < height && x >= 0 && x < width;
                for (int c = 0; c < result.layout.padded_channels; ++c)
                    result.at(image, y, x, c) = inside && c < channels ? random.magnitude * random.normal() : 0.0F;
            }
        }
    }
    return result;
}

double activated(double value, const Op &op) {
    if (op.activation == Activation::none || value >= 0.0)
        return value;
    return op.activation == Activation::relu ? 0.0 : value * static_cast<double>(op.slope);
}

struct Case {
    Op op;
    int images = 1, height = 0, width = 0; // of the output
    int outputs = 0;
    std::vector<Guarded> inputs;
};

Case random_case(Random &random, OpKind kind, int lanes) {
    Case result;
    Op &op = result.op;
    op.kind = kind;
    op.name = "op";
    op.kernel = {3, 3};
    op.activation = std::initializer_list<Activation>{Activation::none, Activation::relu, Activation::leaky_relu}
                        .begin()[random.integer(0, 2)];
    op.slope = 0.1F;
    result.images = random.integer(1, 2);
    result.outputs = random.channels();
    const int a = random.channels(), b = random.channels();
    if (kind == OpKind::up_conv) {
        const int padding = random.integer(0, 1), low_height = random.integer(2, 8), low_width = random.integer(2, 9);
        op.padding = {padding, padding, padding, padding};
        if (padding == 0)
            op.crop = {random.integer(0, 2), random.integer(0, 2)};
        result.height = 2 * low_height - 2 + 2 * padding;
        result.width = 2 * low_width - 2 + 2 * padding;
        result.inputs.push_back(random_input(random, result.images, low_height, low_width, a, lanes, padding));
        result.inputs.push_back(random_input(random, result.images, 2 * low_height + 2 * op.crop[0],
                                             2 * low_width + 2 * op.crop[1], b, lanes, padding));
        add_tensor(op, random, "weight_up", int64_t{16} * result.outputs * a, 4 * a + 9 * b);
        add_tensor(op, random, "weight_skip", int64_t{9} * result.outputs * b, 4 * a + 9 * b);
        add_tensor(op, random, "bias", int64_t{9} * result.outputs, 1);
        return result;
    }
    for (int &side : op.padding)
        side = random.integer(0, 2);
    const int height = random.integer(3, 14), width = random.integer(3, 19);
    result.height = height + op.padding[0] + op.padding[2] - 2;
    result.width = width + op.padding[1] + op.padding[3] - 2;
    result.inputs.push_back(random_input(random, result.images, height, width, a, lanes, 2));
    if (kind == OpKind::concat_conv) {
        op.crop = {random.integer(0, 1), random.integer(0, 1)};
        result.inputs.push_back(
            random_input(random, result.images, height + 2 * op.crop[0], width + 2 * op.crop[1], b, lanes, 2));
        add_tensor(op, random, "weight_a", int64_t{9} * result.outputs * a, 9 * (a + b));
        add_tensor(op, random, "weight_b", int64_t{9} * result.outputs * b, 9 * (a + b));
    } else {
        add_tensor(op, random, "weight", int64_t{9} * result.outputs * a, 9 * a);
    }
    add_tensor(op, random, "bias", result.outputs, 1);
    return result;
}

// One output value before the activation, as docs/design.md defines it.
double expected_sum(const Case &test, int image, int y, int x, int output) {
    const Op &op = test.op;
    const auto sum = [&](const char *name, size_t input, int top, int left, int side, int64_t first) {
        const Guarded &from = test.inputs[input];
        const int channels = from.layout.channels;
        double result = 0.0;
        for (int ky = 0; ky < side; ++ky) {
            for (int kx = 0; kx < side; ++kx) {
                const float *weights =
                    op.tensor(name).values.data() + (((first + output) * side + ky) * side + kx) * channels;
                for (int c = 0; c < channels; ++c)
                    result += static_cast<double>(weights[c]) * from.at(image, top + ky, left + kx, c);
            }
        }
        return result;
    };
    const int top = y - op.padding[0], left = x - op.padding[1];
    const float *bias = op.tensor("bias").values.data();
    if (op.kind == OpKind::up_conv) {
        const auto border = [&](int position, int size) {
            return op.padding[0] == 0 ? 1 : position == 0 ? 0 : position == size - 1 ? 2 : 1;
        };
        const int middle_y = top + 1, middle_x = left + 1, phase = 2 * (middle_y & 1) + (middle_x & 1);
        const int class_of_bias = 3 * border(y, test.height) + border(x, test.width);
        return bias[class_of_bias * test.outputs + output] +
               sum("weight_up", 0, (middle_y >> 1) - 1 + (middle_y & 1), (middle_x >> 1) - 1 + (middle_x & 1), 2,
                   int64_t{phase} * test.outputs) +
               sum("weight_skip", 1, top + op.crop[0], left + op.crop[1], 3, 0);
    }
    if (op.kind == OpKind::concat_conv) {
        return bias[output] + sum("weight_a", 0, top, left, 3, 0) +
               sum("weight_b", 1, top + op.crop[0], left + op.crop[1], 3, 0);
    }
    return bias[output] + sum("weight", 0, top, left, 3, 0);
}

// Weights take no more than what is multiplied: all 3x3 taps or four times 2x2, or the positions that they reach.
void check_weights(const WinogradConvolution &convolution) {
    const bool merged = convolution.phases.size() == 4;
    const int side = convolution.window() - merged, taps = merged ? 4 : 9;
    const int64_t each = convolution.transforms_late ? taps : side * side;
    if (convolution.block_weights == convolution.units * each * (merged ? 4 : 1))
        return;
    std::printf("FAILED: %lld units of weights of a channel block\n",
                static_cast<long long>(convolution.block_weights));
    std::exit(1);
}

// In ranges and portions of a random size, with all windows of the batch first or not.
Guarded run(const Case &test, const std::vector<WinogradForm> &forms, const KernelTable &kernels, ThreadPool &pool,
            Random &random) {
    std::vector<int> channels;
    const Activations *inputs[2] = {&test.inputs[0].layout, &test.inputs.back().layout};
    for (const Guarded &input : test.inputs)
        channels.push_back(input.layout.channels);
    Guarded result(test.images, test.height, test.width, test.outputs, kernels.lanes, 0);
    const Activations &to = result.layout;
    for (const WinogradConvolution &convolution : prepare_winograd(test.op, channels, forms, kernels, pool)) {
        check_weights(convolution);
        WinogradSchedule order = schedule(convolution, test.images, test.height, test.width, 1, true);
        order.whole = convolution.transforms_late || random.integer(0, 1) == 1;
        order.range = random.integer(1, static_cast<int>(order.tiles));
        order.portion = order.whole ? order.range : random.integer(1, static_cast<int>(order.range));
        const AlignedMemory scratch = poisoned(WinogradMemory(convolution, order, nullptr).bytes);
        const WinogradMemory memory(convolution, order, scratch.data());
        const AlignedMemory window_memory = poisoned(window_bytes(convolution, order.tiles));
        const Positions windows = window_layout(convolution, order.tiles, window_memory.data());
        for (int64_t begin = 0; begin < order.tiles; begin += order.range) {
            const int64_t end = std::min(begin + order.range, order.tiles);
            if (order.whole)
                transform_windows(convolution, kernels, order, inputs, begin, end, memory, windows.from(0, begin));
            else
                convolve_range(convolution, kernels, order, inputs, begin, end, memory);
            Lines lines = memory.output;
            for (const ChannelBlock &block : convolution.blocks) {
                for (const WinogradPhase &phase : convolution.phases) {
                    if (order.whole)
                        convolve_windows(convolution, kernels, block, phase, end - begin, windows.from(0, begin),
                                         memory);
                    for_each_run(order, begin, end, [&](const TileRun &run) {
                        const int64_t step = static_cast<int64_t>(convolution.tile) * convolution.stride;
                        const WinogradTarget target{to.pixel(run.image, run.row * step, run.column * step),
                                                    to.row_stride,
                                                    to.pixel_stride,
                                                    to.height,
                                                    to.width,
                                                    false};
                        finish_run(convolution, kernels, block, phase, run, lines, target);
                    });
                    if (!order.whole)
                        lines.data += lines.bytes;
                }
            }
        }
    }
    return result;
}

// Relative to the sums before the activation, which may leave next to nothing of them.
double relative_error(const Case &test, const Guarded &found) {
    double difference = 0.0, norm = 0.0;
    for (int image = 0; image < test.images; ++image) {
        for (int y = 0; y < test.height; ++y) {
            for (int x = 0; x < test.width; ++x) {
                for (int output = 0; output < test.outputs; ++output) {
                    const double sum = expected_sum(test, image, y, x, output);
                    difference += std::pow(found.at(image, y, x, output) - activated(sum, test.op), 2);
                    norm += sum * sum;
                }
            }
        }
    }
    return std::sqrt(difference / std::max(norm, 1e-30));
}

// Float32 products of tiles of 4 lose about a decimal digit to the direct sum; bf16 ones have 8 bits.
double tolerance(const WinogradForm &form) {
    if (form.products != Products::float32)
        return form.products == Products::bf16 ? 1.2e-2 : 8e-3;
    return form.tile == 4 ? 3e-6 : 1e-6;
}

bool has_kernels(const WinogradForm &form, const Case &test, const KernelTable &kernels) {
    if (form.products == Products::bf16)
        return kernels.winograd->product_bf16 != nullptr;
    if (form.products == Products::fp16)
        return kernels.winograd->product_fp16 != nullptr && round_up(test.outputs, kernels.lanes) % 8 == 0;
    return true;
}

std::vector<const KernelTable *> instruction_sets() {
    std::vector<const KernelTable *> result;
    for (const char *isa : {"avx512_bf16", "avx512", "avx2", "neon_bf16", "neon_fp16", "neon", "portable"}) {
        try {
            const KernelTable &kernels = choose_kernels(isa);
            if (kernels.isa == std::string(isa))
                result.push_back(&kernels);
        } catch (const Error &) { // of another kind of CPU
        }
    }
    return result;
}

} // namespace

int main(int count, char **arguments) {
    const unsigned first = count > 1 ? static_cast<unsigned>(std::atoi(arguments[1])) : 0;
    const unsigned seeds = count > 2 ? static_cast<unsigned>(std::atoi(arguments[2])) : 10;
    ThreadPool pool(1);
    int runs = 0;
    double largest[2] = {0.0, 0.0}, largest_fp16 = 0.0; // of float32, by tile
    const std::vector<const KernelTable *> isas = instruction_sets();
    for (const KernelTable *kernels : isas) {
        for (unsigned seed = first; seed < first + seeds; ++seed) {
            for (const OpKind kind : {OpKind::conv, OpKind::concat_conv, OpKind::up_conv}) {
                Random random(seed);
                constexpr float magnitudes[] = {1.0F, 3000.0F, 1e-3F}; // fp16 has not the range of float32
                random.magnitude = magnitudes[(seed + static_cast<unsigned>(kind)) % 3];
                const Case test = random_case(random, kind, kernels->lanes);
                for (const WinogradForm &form :
                     {WinogradForm{2}, WinogradForm{4}, WinogradForm{2, Products::bf16},
                      WinogradForm{4, Products::fp16}, WinogradForm{2, Products::float32, true},
                      WinogradForm{4, Products::float32, true}}) {
                    if (!has_kernels(form, test, *kernels))
                        continue;
                    const std::vector<WinogradForm> forms(kind == OpKind::up_conv ? 2 : 1, form);
                    const double error = relative_error(test, run(test, forms, *kernels, pool, random));
                    ++runs;
                    if (form.products == Products::float32)
                        largest[form.tile == 4] = std::max(largest[form.tile == 4], error);
                    else if (form.products == Products::fp16)
                        largest_fp16 = std::max(largest_fp16, error);
                    if (error <= tolerance(form))
                        continue;
                    std::printf(
                        "FAILED: op kind %d, seed %u, %s, tile %d, products %d, late weights %d: relative error "
                        "%g\n",
                        static_cast<int>(kind), seed, kernels->isa, form.tile, static_cast<int>(form.products),
                        form.transforms_late, error);
                    return 1;
                }
            }
        }
    }
    std::printf("passed: %d runs on", runs);
    for (const KernelTable *kernels : isas)
        std::printf(" %s", kernels->isa);
    std::printf("; largest relative error %.1e with tiles of 2, %.1e with tiles of 4, %.1e in fp16\n", largest[0],
                largest[1], largest_fp16);
    return 0;
}
