#include "winograd_choice.h"

#include <algorithm>
#include <cmath>

namespace uf {
namespace {

// An op in one of its forms: an estimate for one image of the size that the network was trained on.
struct Option {
    std::vector<WinogradForm> forms; // none: direct
    double cycles = 0.0;             // of one core
    double bytes = 0.0;              // of weights
};

// Products in bf16 double the rounding error of the direct form, which matters less where a sum has many terms: with at
// least so many channels the whole of relunet16 and relunet64 stays at the error that it has with direct convolutions.
constexpr double least_bf16_inputs = 128.0;

// Of a core with one multiply-add per cycle on vectors of float32, two of bf16.
struct Cycles {
    double lanes;
    // Of what the registers could do, the kernels reach about this share.
    static constexpr double efficiency = 0.85;
    // Weights beyond the second cache come at about so many bytes per cycle.
    static constexpr double bytes_per_cycle = 6.0;

    // fp16: 32 instructions for two vectors and 32 channels, and 4 to add their sums, instead of 64.
    double products(double multiply_adds, Products type) const {
        const double speed = type == Products::bf16 ? 2.0 : type == Products::fp16 ? 1.8 : 1.0;
        return multiply_adds / lanes / efficiency / speed;
    }
    double weights(double bytes) const { return bytes / bytes_per_cycle; }
    // Per tile and vector of channels, both transforms together.
    static double input_transform(int tile) { return tile == 2 ? 45.0 : 125.0; }
    static double output_transform(int tile) { return tile == 2 ? 40.0 : 110.0; }
    // Per unit and vector of channels whose weights are transformed late, by position; they come from memory while the
    // products before them run.
    static double late_transform(int positions) { return 5.0 * positions; }
    // Tiles for which that is done once: see `schedule`.
    static constexpr double late_range = 64.0;
};

struct Shape {
    double inputs, outputs; // channels, padded
    double rows, columns;   // of the grid that the tiles cover
    int phases;             // 1, or 4 with kernels of 2x2
};

// Whether the form is exact enough, and there are kernels for it.
bool suits(const WinogradForm &form, const Shape &shape, const Cycles &cycles) {
    if (form.products == Products::fp16)
        return std::fmod(shape.outputs, 2.0 * cycles.lanes) == 0.0;
    return form.products == Products::float32 || shape.inputs >= least_bf16_inputs;
}

void add_direct(Option &option, const Shape &shape, const Cycles &cycles, bool bf16) {
    const double taps = shape.phases == 1 ? 9.0 : 4.0, weights = taps * shape.phases * shape.inputs * shape.outputs;
    const double bytes = weights * (bf16 ? 2.0 : 4.0);
    const Products products = bf16 ? Products::bf16 : Products::float32;
    option.cycles += cycles.products(weights * shape.rows * shape.columns, products) + cycles.weights(bytes);
    option.bytes += bytes;
}

void add_winograd(Option &option, const WinogradForm &form, const Shape &shape, const Cycles &cycles) {
    const int side = shape.phases == 1 ? form.tile + 2 : form.tile + 1;
    const auto along = [&](double pixels) { return std::ceil(pixels / form.tile); };
    const double tiles = along(shape.rows) * along(shape.columns);
    const double pairs = shape.phases * shape.inputs * shape.outputs, weights = side * side * pairs;
    const double stored = form.transforms_late ? (shape.phases == 1 ? 9.0 : 4.0) * pairs : weights;
    const double bytes = stored * (form.products == Products::float32 ? 4.0 : 2.0);
    option.forms.push_back(form);
    option.cycles += cycles.products(weights * tiles, form.products);
    if (form.transforms_late) {
        option.cycles +=
            std::ceil(tiles / Cycles::late_range) * pairs / cycles.lanes * Cycles::late_transform(side * side);
    } else {
        option.cycles += cycles.weights(bytes);
    }
    option.cycles += tiles * shape.inputs / cycles.lanes * Cycles::input_transform(form.tile);
    option.cycles += tiles * shape.phases * shape.outputs / cycles.lanes * Cycles::output_transform(form.tile);
    option.bytes += bytes;
}

// The convolutions that an op consists of.  Empty where it has no Winograd form.
std::vector<Shape> shapes_of(const Op &op, const Plan &plan, int lanes) {
    if (!has_winograd_form(op))
        return {};
    const int64_t side = plan.next_legal(plan.tile);
    const auto channels = [&](size_t input) {
        return static_cast<double>(round_up(plan.buffers[op.inputs[input]].channels, lanes));
    };
    const Buffer &like = plan.buffers[op.outputs.empty() ? op.inputs[0] : op.outputs[0]];
    const auto rows = static_cast<double>(like.height.at(side)), columns = static_cast<double>(like.width.at(side));
    const double outputs = round_up(static_cast<int>(output_channels(op)), lanes);
    if (op.kind == OpKind::up_conv)
        return {{channels(0), outputs, rows / 2, columns / 2, 4}, {channels(1), outputs, rows, columns, 1}};
    const double inputs = op.inputs.size() == 2 ? channels(0) + channels(1) : channels(0);
    return {{inputs, outputs, rows, columns, 1}};
}

// Direct first, which takes the least memory.
std::vector<Option> options_of(const Op &op, const Plan &plan, const KernelTable &kernels, Products products) {
    const bool bf16 = products == Products::bf16;
    const Cycles cycles{static_cast<double>(kernels.lanes)};
    const std::vector<Shape> shapes = shapes_of(op, plan, kernels.lanes);
    std::vector<Option> options(1);
    for (const Shape &shape : shapes)
        add_direct(options[0], shape, cycles, bf16);
    std::vector<WinogradForm> forms = {{2}, {4}};
    if (bf16)
        forms = {{2, Products::bf16}, {4}};
    else if (products == Products::fp16)
        forms.push_back({4, Products::fp16});
    if (op.kind != OpKind::head)
        forms.push_back({4, Products::float32, true});
    for (const WinogradForm &first : forms) {
        for (const WinogradForm &second : forms) {
            if (shapes.empty() || (shapes.size() == 1 && &second != &first))
                continue;
            if (!suits(first, shapes.front(), cycles) || !suits(second, shapes.back(), cycles))
                continue;
            Option option;
            add_winograd(option, first, shapes[0], cycles);
            if (shapes.size() == 2)
                add_winograd(option, second, shapes[1], cycles);
            options.push_back(std::move(option));
        }
    }
    return options;
}

} // namespace

std::vector<std::vector<WinogradForm>> choose_winograd(const Plan &plan, const KernelTable &kernels,
                                                       Products products) {
    std::vector<std::vector<Option>> options;
    double bytes = 0.0;
    for (const Op &op : plan.ops) {
        options.push_back(options_of(op, plan, kernels, products));
        bytes += options.back()[0].bytes;
    }
    // Memory goes where it saves most time per byte.
    const double most_bytes = 12e6 + 1.25 * bytes;
    std::vector<size_t> chosen(options.size(), 0);
    while (true) {
        size_t best_op = 0, best_option = 0;
        double best_gain = 0.0;
        for (size_t op = 0; op < options.size(); ++op) {
            const Option &now = options[op][chosen[op]];
            for (size_t i = 0; i < options[op].size(); ++i) {
                const Option &other = options[op][i];
                const double more = std::max(other.bytes - now.bytes, 1.0), gain = (now.cycles - other.cycles) / more;
                if (gain > best_gain && bytes + other.bytes - now.bytes <= most_bytes) {
                    best_gain = gain;
                    best_op = op;
                    best_option = i;
                }
            }
        }
        if (best_gain == 0.0)
            break;
        bytes += options[best_op][best_option].bytes - options[best_op][chosen[best_op]].bytes;
        chosen[best_op] = best_option;
    }
    std::vector<std::vector<WinogradForm>> result;
    for (size_t op = 0; op < options.size(); ++op)
        result.push_back(options[op][chosen[op]].forms);
    return result;
}

} // namespace uf
