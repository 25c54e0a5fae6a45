// The reference of every kernel: plain float32 loops, rounded where the kernels store and load.
//
// A kernel is described by JSON that tests/fake_kernels.py makes out of the engine file:
//   entry, op (as in the file), step, precision, pixel or result, output (kind, channels), image_channels,
//   grid, arguments (as in the file; buffers with their role, position and channels, weights with their short name),
//   hidden, first_channel (of a step of concat), warps, shared, pdl; candidate, for the report;
//   microseconds that it takes on the fake's clock; factor by which its results are wrong; idle, if it writes nothing.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "state.h"

namespace fake {

namespace {

using nlohmann::json;

float from_half(uint16_t bits) {
    const int exponent = bits >> 10 & 31, fraction = bits & 1023;
    const float magnitude = exponent == 31  ? (fraction != 0 ? NAN : INFINITY)
                            : exponent == 0 ? std::ldexp(static_cast<float>(fraction), -24)
                                            : std::ldexp(static_cast<float>(fraction + 1024), exponent - 25);
    return (bits & 0x8000) != 0 ? -magnitude : magnitude;
}

uint16_t to_half(float value) {
    const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
    if (std::isnan(value))
        return 0x7E00;
    const float magnitude = std::fabs(value);
    if (magnitude >= 65520.0F)
        return sign | 0x7C00;
    int exponent = 0;
    if (magnitude == 0.0F)
        return sign;
    std::frexp(magnitude, &exponent); // magnitude is in [2^(exponent-1), 2^exponent)
    const int unit = std::max(exponent - 11, -24);
    const auto units = static_cast<int>(std::nearbyint(std::ldexp(magnitude, -unit)));
    // The hidden bit of `units` adds one to the exponent field, as does a carry out of the fraction.
    return static_cast<uint16_t>(sign | ((unit + 24) * 1024 + units));
}

enum class Type { fp16, bf16, float32, uint8, uint16 };

Type type_named(const std::string &name) {
    if (name == "uint8")
        return Type::uint8;
    if (name == "uint16")
        return Type::uint16;
    return name == "fp16" ? Type::fp16 : name == "bf16" ? Type::bf16 : Type::float32;
}

size_t bytes_of(Type type) { return type == Type::float32 ? 4 : type == Type::uint8 ? 1 : 2; }

float load(const std::byte *address, Type type) {
    uint16_t half = 0;
    float value = 0;
    uint32_t bits = 0;
    switch (type) {
    case Type::uint8:
        return static_cast<float>(*address);
    case Type::float32:
        std::memcpy(&value, address, 4);
        return value;
    case Type::uint16:
        std::memcpy(&half, address, 2);
        return half;
    case Type::fp16:
        std::memcpy(&half, address, 2);
        return from_half(half);
    case Type::bf16:
        std::memcpy(&half, address, 2);
        bits = static_cast<uint32_t>(half) << 16U;
        std::memcpy(&value, &bits, 4);
        return value;
    }
    return 0;
}

void store(float value, std::byte *address, Type type) {
    if (type == Type::float32) {
        std::memcpy(address, &value, 4);
        return;
    }
    uint16_t half = 0;
    if (type == Type::fp16) {
        half = to_half(value);
    } else {
        uint32_t bits = 0;
        std::memcpy(&bits, &value, 4);
        half = static_cast<uint16_t>((bits + 0x7FFFU + (bits >> 16U & 1U)) >> 16U);
    }
    std::memcpy(address, &half, 2);
}

float rounded(float value, Type type) {
    std::byte bytes[4];
    store(value, bytes, type);
    return load(bytes, type);
}

// A tight (N, H, W, C) tensor in device memory.
struct Tensor {
    std::byte *data = nullptr;
    int64_t n = 0, h = 0, w = 0, c = 0;
    Type type{};
    std::byte *address(int64_t i, int64_t y, int64_t x, int64_t channel) const {
        return data + static_cast<size_t>(((i * h + y) * w + x) * c + channel) * bytes_of(type);
    }
    float at(int64_t i, int64_t y, int64_t x, int64_t channel) const {
        return y < 0 || x < 0 || y >= h || x >= w ? 0.0F : load(address(i, y, x, channel), type);
    }
    void set(int64_t i, int64_t y, int64_t x, int64_t channel, float value) const {
        store(value, address(i, y, x, channel), type);
    }
};

// A value of x2 (or more) linear upsampling lies between two samples.
struct Between {
    int64_t low, high;
    float weight;
};

Between between(int64_t position, int64_t size, int64_t scale, bool corners) {
    float source = corners ? static_cast<float>(position) * static_cast<float>(size - 1) /
                                 static_cast<float>(std::max<int64_t>(size * scale - 1, 1))
                           : (static_cast<float>(position) + 0.5F) / static_cast<float>(scale) - 0.5F;
    source = std::max(source, 0.0F);
    const int64_t low = std::min(static_cast<int64_t>(source), size - 1);
    return {low, std::min(low + 1, size - 1), source - static_cast<float>(low)};
}

class Run {
  public:
    Run(const Launch &launch, const KernelFunction &function)
        : launch_(launch), function_(function), description_(*function.description), op_(description_["op"]),
          type_(type_named(description_["precision"])), n_(images()), activation_(op_.value("activation", "none")),
          slope_(op_.value("slope", 0.0F)), factor_(description_.value("factor", 1.0F)) {
        if (op_.contains("kernel"))
            kernel_ = op_["kernel"].get<std::array<int64_t, 2>>();
        if (op_.contains("padding"))
            padding_ = op_["padding"].get<std::array<int64_t, 4>>();
    }

    void check_launch() {
        expect(launch_.block[0] == 32 * description_["warps"].get<unsigned>() && launch_.block[1] == 1 &&
                   launch_.block[2] == 1,
               "block is not 32 * warps threads");
        const int shared = description_["shared"];
        expect(static_cast<int>(launch_.shared_bytes) == shared, "shared memory is not the kernel's");
        expect(shared <= function_.allowed_shared_bytes, "more shared memory than the function was allowed");
        for (size_t i = arguments().size(); i < launch_.arguments.size(); ++i)
            expect(launch_.arguments[i] == 0, "a hidden argument is not null");
        for (size_t i = 0; i < 3; ++i)
            expect(launch_.grid[i] == axis(description_["grid"][i]), "grid is not what the kernel says");
        for (size_t i = 0; i < arguments().size(); ++i) {
            const json &argument = arguments()[i];
            const std::string &kind = argument["kind"];
            const bool aligned = kind == "buffer" || kind == "weight" || kind == "scratch";
            expect(!aligned || launch_.arguments[i] % 256 == 0, "a pointer is not aligned to 256 bytes");
            expect(kind != "transform" || launch_.arguments[i] % 16 == 0, "transforms are not aligned to 16 bytes");
            if (kind == "float32" || ((kind == "int32" || kind == "int64") && argument["value"].is_number()))
                expect_constant(argument, launch_.arguments[i]);
        }
    }

    void run() {
        use_scratch();
        if (description_.value("idle", false))
            return;
        const std::string &kind = op_["op"];
        if (kind == "stem")
            convolve(image_source(), "weight");
        else if (kind == "conv")
            convolve(source(input(0)), "weight");
        else if (kind == "up_conv")
            up_conv();
        else if (kind == "concat_conv")
            concat_conv();
        else if (kind == "head")
            head();
        else if (kind == "output")
            write_results(source(input(0)));
        else if (kind == "normalise")
            each([source = image_source()](int64_t i, int64_t y, int64_t x, int64_t c) { return source(i, y, x, c); });
        else if (kind == "conv_transpose")
            conv_transpose();
        else if (kind == "pool")
            pool();
        else if (kind == "upsample")
            each(upsampled(input(0), op_["mode"], op_["scale"]));
        else if (kind == "pad")
            each([x0 = input(0), p = op_["padding"]](int64_t i, int64_t y, int64_t x, int64_t c) {
                return x0.at(i, y - p[0].get<int64_t>(), x - p[1].get<int64_t>(), c);
            });
        else if (kind == "concat")
            concat();
        else if (kind == "add")
            each([this, a = input(0), b = input(1)](int64_t i, int64_t y, int64_t x, int64_t c) {
                return activated(a.at(i, y, x, c) + b.at(i, y, x, c));
            });
        else if (kind == "affine")
            affine();
        else if (kind == "l2_normalise")
            l2_normalise();
        else if (op_["activation"] == "softmax")
            softmax();
        else
            each([this, a = input(0)](int64_t i, int64_t y, int64_t x, int64_t c) {
                return activated(a.at(i, y, x, c));
            });
    }

  private:
    using Source = std::function<float(int64_t i, int64_t y, int64_t x, int64_t c)>;

    const json &arguments() const { return description_["arguments"]; }

    static void expect(bool right, const char *otherwise) {
        if (!right)
            state().violate(otherwise);
    }

    static void expect_constant(const json &argument, uint64_t bits) {
        uint64_t expected = 0;
        if (argument["kind"] == "float32") {
            const float value = argument["value"];
            std::memcpy(&expected, &value, 4);
        } else {
            const int64_t value = argument["value"];
            std::memcpy(&expected, &value, argument["kind"] == "int32" ? 4 : 8);
        }
        expect(bits == expected, "a constant argument has another value");
    }

    // The bits of the first argument that `matches`; `fallback` where there is none.
    template <class Matches> uint64_t find(const Matches &matches, uint64_t fallback = 0) const {
        for (size_t i = 0; i < arguments().size(); ++i)
            if (matches(arguments()[i]))
                return launch_.arguments[i];
        return fallback;
    }
    uint64_t of_kind(const char *kind) const {
        return find([&](const json &argument) { return argument["kind"] == kind; });
    }
    int64_t stride(const char *kind, const char *axis) const {
        return static_cast<int64_t>(
            find([&](const json &argument) { return argument["kind"] == kind && argument["axis"] == axis; }));
    }
    int64_t symbol(const std::string &name) const {
        const uint64_t bits = find([&](const json &argument) {
            return argument.contains("value") && argument["value"].is_string() && argument["value"] == name;
        });
        const auto value = static_cast<int64_t>(static_cast<int32_t>(bits));
        if (name == "N") {
            expect(bits == 0 || value == n_, "N is not the number of images"); // not all kernels take it
            return n_;
        }
        // Those that write what is as large as what they read take one size.
        return value == 0 && name.size() > 1 ? symbol(name.substr(0, 1)) : value;
    }

    // The third extent of every grid is N, or N times a constant.
    int64_t images() const {
        int64_t each = 1;
        for (const json &factor : description_["grid"][2])
            each *= factor.is_number() ? factor.get<int64_t>() : 1;
        return launch_.grid[2] / each;
    }

    // A product as "Sizes" in docs/design.md defines it.
    int64_t axis(const json &factors) const {
        const auto term = [&](const json &value) {
            return value.is_string() ? symbol(value.get<std::string>()) : value.get<int64_t>();
        };
        int64_t product = 1;
        for (const json &factor : factors) {
            if (!factor.is_object()) {
                product *= term(factor);
                continue;
            }
            int64_t part = 1;
            for (const json &value : factor["ceil"])
                part *= term(value);
            const int64_t by = factor["by"];
            product *= (part + by - 1) / by;
        }
        return product;
    }

    // Device memory; where the range is wrong, which is recorded, scratch memory of that size.
    std::byte *memory(uint64_t address, size_t bytes) {
        if (std::byte *const found = state().at(address, bytes, function_.device); found != nullptr)
            return found;
        spare_.emplace_back(bytes);
        return spare_.back().data();
    }

    Tensor tensor(const char *role, size_t position, int64_t h, int64_t w) {
        Tensor result;
        const uint64_t address = find([&](const json &argument) {
            const bool same =
                argument["kind"] == "buffer" && argument["role"] == role && argument["position"] == position;
            if (same)
                result.c = argument["channels"];
            return same;
        });
        result.n = n_;
        result.h = h;
        result.w = w;
        result.type = type_;
        if (result.c > 0)
            result.data = memory(address, static_cast<size_t>(n_ * h * w * result.c) * bytes_of(type_));
        return result;
    }
    Tensor input(size_t position) {
        const std::string number = std::to_string(position);
        return tensor("input", position, symbol("H" + number), symbol("W" + number));
    }
    Tensor output() { return tensor("output", 0, symbol("H"), symbol("W")); }
    Tensor pooled() { return tensor("output", 1, symbol("H") / 2, symbol("W") / 2); }

    // A packed constant, unpacked to float32 in canonical order; its padding must be zero.
    std::vector<float> weight(const std::string &name) {
        std::vector<float> values;
        for (size_t i = 0; i < arguments().size(); ++i) {
            const json &argument = arguments()[i];
            if (argument["kind"] != "weight" || argument["name"] != name)
                continue;
            const auto shape = argument["shape"].get<std::vector<int64_t>>();
            const auto padded = argument["pad_to"].get<std::vector<int64_t>>();
            const Type type = type_named(argument["dtype"]);
            int64_t elements = 1;
            for (const int64_t extent : padded)
                elements *= extent;
            const std::byte *const data = memory(launch_.arguments[i], static_cast<size_t>(elements) * bytes_of(type));
            for (int64_t flat = 0; flat < elements; ++flat) {
                const float value = load(data + static_cast<size_t>(flat) * bytes_of(type), type);
                int64_t rest = flat;
                bool inside = true;
                for (size_t axis = shape.size(); axis-- > 0; rest /= padded[axis])
                    inside = inside && rest % padded[axis] < shape[axis];
                if (inside)
                    values.push_back(value);
                else
                    expect(value == 0.0F, "padding of a weight is not zero");
            }
        }
        return values;
    }

    float activated(float value) const {
        const std::string &name = activation_;
        if (name == "relu")
            return std::max(value, 0.0F);
        if (name == "leaky_relu")
            return value > 0.0F ? value : value * slope_;
        if (name == "sigmoid")
            return 1.0F / (1.0F + std::exp(-value));
        return name == "tanh" ? std::tanh(value) : value;
    }

    // Poison in what may hold anything; what must hold zeros is checked, and is zero again afterwards.
    void use_scratch() {
        for (size_t i = 0; i < arguments().size(); ++i) {
            const json &argument = arguments()[i];
            if (argument["kind"] != "scratch")
                continue;
            const auto bytes = static_cast<size_t>(axis(argument["bytes"]));
            std::byte *const data = memory(launch_.arguments[i], bytes);
            if (!argument["zeroed"].get<bool>())
                std::fill(data, data + bytes, std::byte{0xFF});
            else
                expect(std::all_of(data, data + bytes, [](std::byte byte) { return byte == std::byte{0}; }),
                       "zeroed scratch memory is not zero");
        }
    }

    static Source source(const Tensor &tensor) {
        return [tensor](int64_t i, int64_t y, int64_t x, int64_t c) { return tensor.at(i, y, x, c); };
    }

    // The caller's image, normalised; zero outside.
    Source image_source() {
        const Type pixel = type_named(description_["pixel"]);
        const int64_t h = symbol("H0"), w = symbol("W0"), channels = description_["image_channels"];
        const int64_t strides[] = {stride("image_stride", "image"), stride("image_stride", "row"),
                                   stride("image_stride", "pixel"), stride("image_stride", "channel")};
        const auto item = static_cast<int64_t>(bytes_of(pixel));
        // The span of all pixels, whatever the signs of the strides.
        int64_t low = 0, high = 0;
        const int64_t sizes[] = {n_, h, w, channels};
        for (size_t axis = 0; axis < 4; ++axis) {
            low += std::min<int64_t>(0, (sizes[axis] - 1) * strides[axis]);
            high += std::max<int64_t>(0, (sizes[axis] - 1) * strides[axis]);
        }
        const auto first = static_cast<int64_t>(of_kind("image"));
        const std::byte *const pixels =
            memory(static_cast<uint64_t>(first + low * item), static_cast<size_t>((high - low + 1) * item)) -
            low * item;
        const Tensor transform{memory(of_kind("transform"), static_cast<size_t>(n_) * 32), n_, 1, 2, 4, Type::float32};
        return [=](int64_t i, int64_t y, int64_t x, int64_t c) {
            if (y < 0 || x < 0 || y >= h || x >= w)
                return 0.0F;
            const int64_t offset = i * strides[0] + y * strides[1] + x * strides[2] + c * strides[3];
            const float value = load(pixels + offset * item, pixel);
            return rounded(value * transform.at(i, 0, 0, c) + transform.at(i, 0, 1, c), type_);
        };
    }

    Source upsampled(const Tensor &low, const std::string &mode, int64_t scale) const {
        if (mode == "none")
            return source(low);
        return [=](int64_t i, int64_t y, int64_t x, int64_t c) {
            if (y < 0 || x < 0 || y >= low.h * scale || x >= low.w * scale)
                return 0.0F;
            if (mode == "nearest")
                return low.at(i, y / scale, x / scale, c);
            const Between v = between(y, low.h, scale, mode == "bilinear_corners");
            const Between u = between(x, low.w, scale, mode == "bilinear_corners");
            const float upper = (1 - u.weight) * low.at(i, v.low, u.low, c) + u.weight * low.at(i, v.low, u.high, c);
            const float lower = (1 - u.weight) * low.at(i, v.high, u.low, c) + u.weight * low.at(i, v.high, u.high, c);
            return rounded((1 - v.weight) * upper + v.weight * lower, type_);
        };
    }

    // Sum over the window of one output pixel and channel.
    float window(const Source &from, const std::vector<float> &weights, int64_t channels, int64_t o, int64_t i,
                 int64_t y, int64_t x) const {
        const auto [ky, kx] = kernel_;
        const int64_t top = y - padding_[0], left = x - padding_[1];
        float sum = 0;
        for (int64_t dy = 0; dy < ky; ++dy)
            for (int64_t dx = 0; dx < kx; ++dx)
                for (int64_t c = 0; c < channels; ++c)
                    sum += weights[static_cast<size_t>(((o * ky + dy) * kx + dx) * channels + c)] *
                           from(i, top + dy, left + dx, c);
        return sum;
    }

    // output(i, y, x, c) = value(i, y, x, c), and its 2x2 maximum where there is a second output.
    void each(const Source &value) {
        const Tensor y0 = output();
        for (int64_t i = 0; i < y0.n; ++i)
            for (int64_t y = 0; y < y0.h; ++y)
                for (int64_t x = 0; x < y0.w; ++x)
                    for (int64_t c = 0; c < y0.c; ++c)
                        y0.set(i, y, x, c, factor_ * value(i, y, x, c));
        const Tensor half = pooled();
        if (half.data == nullptr)
            return;
        for (int64_t i = 0; i < half.n; ++i)
            for (int64_t y = 0; y < half.h; ++y)
                for (int64_t x = 0; x < half.w; ++x)
                    for (int64_t c = 0; c < half.c; ++c)
                        half.set(i, y, x, c,
                                 std::max({y0.at(i, 2 * y, 2 * x, c), y0.at(i, 2 * y, 2 * x + 1, c),
                                           y0.at(i, 2 * y + 1, 2 * x, c), y0.at(i, 2 * y + 1, 2 * x + 1, c)}));
    }

    int64_t channels_in(const std::vector<float> &weights, int64_t outputs) const {
        return static_cast<int64_t>(weights.size()) /
               (outputs * op_["kernel"][0].get<int64_t>() * op_["kernel"][1].get<int64_t>());
    }

    void convolve(const Source &from, const char *name) {
        const std::vector<float> weights = weight(name), bias = weight("bias");
        const int64_t channels = channels_in(weights, static_cast<int64_t>(bias.size()));
        each([&](int64_t i, int64_t y, int64_t x, int64_t o) {
            return activated(bias[static_cast<size_t>(o)] + window(from, weights, channels, o, i, y, x));
        });
    }

    void concat_conv() {
        const std::vector<float> weight_a = weight("weight_a"), weight_b = weight("weight_b"), bias = weight("bias");
        const auto outputs = static_cast<int64_t>(bias.size());
        const Source a = upsampled(input(0), op_["upsample"], 2);
        const Source b = cropped(input(1), input(0).h * (op_["upsample"] == "none" ? 1 : 2),
                                 input(0).w * (op_["upsample"] == "none" ? 1 : 2));
        each([&](int64_t i, int64_t y, int64_t x, int64_t o) {
            return activated(bias[static_cast<size_t>(o)] +
                             window(a, weight_a, channels_in(weight_a, outputs), o, i, y, x) +
                             window(b, weight_b, channels_in(weight_b, outputs), o, i, y, x));
        });
    }

    // The window of h x w of a skip tensor that its op reads.
    Source cropped(const Tensor &skip, int64_t h, int64_t w) const {
        const int64_t top = op_["crop"][0], left = op_["crop"][1];
        return [=](int64_t i, int64_t y, int64_t x, int64_t c) {
            return y < 0 || x < 0 || y >= h || x >= w ? 0.0F : skip.at(i, y + top, x + left, c);
        };
    }

    void up_conv() {
        const std::vector<float> up = weight("weight_up"), skip_weight = weight("weight_skip"), bias = weight("bias");
        const Tensor low = input(0), skip = input(1), y0 = output();
        const int64_t p = op_["padding"][0], top = op_["crop"][0], left = op_["crop"][1];
        const auto edge = [&](int64_t position, int64_t size) -> int64_t {
            return p == 0 ? 1 : position == 0 ? 0 : position == size - 1 ? 2 : 1;
        };
        each([&](int64_t i, int64_t y, int64_t x, int64_t o) {
            float sum = bias[static_cast<size_t>((edge(y, y0.h) * 3 + edge(x, y0.w)) * y0.c + o)];
            const int64_t middle_y = y + 1 - p, middle_x = x + 1 - p, phase_y = middle_y & 1, phase_x = middle_x & 1;
            for (int64_t a = 0; a < 2; ++a)
                for (int64_t b = 0; b < 2; ++b)
                    for (int64_t c = 0; c < low.c; ++c)
                        sum += up[static_cast<size_t>(((((phase_y * 2 + phase_x) * y0.c + o) * 2 + a) * 2 + b) * low.c +
                                                      c)] *
                               low.at(i, (middle_y >> 1) - 1 + phase_y + a, (middle_x >> 1) - 1 + phase_x + b, c);
            for (int64_t dy = 0; dy < 3; ++dy)
                for (int64_t dx = 0; dx < 3; ++dx)
                    for (int64_t c = 0; c < skip.c; ++c)
                        sum += skip_weight[static_cast<size_t>(((o * 3 + dy) * 3 + dx) * skip.c + c)] *
                               skip.at(i, y - p + dy + top, x - p + dx + left, c);
            return activated(sum);
        });
    }

    void conv_transpose() {
        const std::vector<float> weights = weight("weight"), bias = weight("bias");
        const Tensor x0 = input(0);
        const int64_t ky = kernel_[0], kx = kernel_[1], sy = op_["stride"][0], sx = op_["stride"][1];
        const int64_t top = op_["padding"][0], left = op_["padding"][1];
        each([&](int64_t i, int64_t y, int64_t x, int64_t o) {
            float sum = bias[static_cast<size_t>(o)];
            for (int64_t dy = 0; dy < ky; ++dy)
                for (int64_t dx = 0; dx < kx; ++dx) {
                    const int64_t full_y = y + top - dy, full_x = x + left - dx;
                    if (full_y < 0 || full_x < 0 || full_y % sy != 0 || full_x % sx != 0)
                        continue;
                    for (int64_t c = 0; c < x0.c; ++c)
                        sum += weights[static_cast<size_t>(((o * ky + dy) * kx + dx) * x0.c + c)] *
                               x0.at(i, full_y / sy, full_x / sx, c);
                }
            return activated(sum);
        });
    }

    void pool() {
        const Tensor x0 = input(0);
        const auto [ky, kx] = kernel_;
        const bool is_max = op_["mode"] == "max";
        each([&](int64_t i, int64_t y, int64_t x, int64_t c) {
            float best = is_max ? -INFINITY : 0.0F;
            for (int64_t dy = 0; dy < ky; ++dy)
                for (int64_t dx = 0; dx < kx; ++dx) {
                    const float value = x0.at(i, y * ky + dy, x * kx + dx, c);
                    best = is_max ? std::max(best, value) : best + value;
                }
            return is_max ? best : best / static_cast<float>(ky * kx);
        });
    }

    // One step writes one input's channels.
    void concat() {
        const size_t step = description_["step"];
        const Tensor y0 = output();
        const Tensor x0 = tensor("input", step, y0.h, y0.w);
        const int64_t first = description_["first_channel"];
        for (int64_t i = 0; i < x0.n; ++i)
            for (int64_t y = 0; y < x0.h; ++y)
                for (int64_t x = 0; x < x0.w; ++x)
                    for (int64_t c = 0; c < x0.c; ++c)
                        y0.set(i, y, x, first + c, factor_ * x0.at(i, y, x, c));
    }

    void affine() {
        const std::vector<float> scale = weight("scale"), shift = weight("shift");
        const Tensor x0 = input(0);
        each([&](int64_t i, int64_t y, int64_t x, int64_t c) {
            return activated(x0.at(i, y, x, c) * scale[static_cast<size_t>(c)] + shift[static_cast<size_t>(c)]);
        });
    }

    void softmax() {
        const Tensor x0 = input(0);
        each([&](int64_t i, int64_t y, int64_t x, int64_t c) {
            float largest = -INFINITY, sum = 0;
            for (int64_t k = 0; k < x0.c; ++k)
                largest = std::max(largest, x0.at(i, y, x, k));
            for (int64_t k = 0; k < x0.c; ++k)
                sum += std::exp(x0.at(i, y, x, k) - largest);
            return std::exp(x0.at(i, y, x, c) - largest) / sum;
        });
    }

    void l2_normalise() {
        const Tensor x0 = input(0);
        const bool column = op_["mode"] == "columns";
        each([&](int64_t i, int64_t y, int64_t x, int64_t c) {
            float squares = 0;
            for (int64_t k = 0; k < (column ? x0.h : x0.w); ++k) {
                const float value = column ? x0.at(i, k, x, c) : x0.at(i, y, k, c);
                squares += value * value;
            }
            return x0.at(i, y, x, c) / (squares > 0 ? std::sqrt(squares) : 1);
        });
    }

    void head() {
        const std::vector<float> weights = weight("weight"), bias = weight("bias");
        const std::vector<float> head_weight = weight("head_weight"), head_bias = weight("head_bias");
        const Source from = source(input(0));
        const auto width = static_cast<int64_t>(bias.size());
        const int64_t channels = channels_in(weights, width);
        int64_t last_i = -1, last_y = -1, last_x = -1;
        std::vector<float> hidden(bias.size());
        write_results([&](int64_t i, int64_t y, int64_t x, int64_t k) {
            if (i != last_i || y != last_y || x != last_x)
                for (int64_t o = 0; o < width; ++o)
                    hidden[static_cast<size_t>(o)] = rounded(
                        activated(bias[static_cast<size_t>(o)] + window(from, weights, channels, o, i, y, x)), type_);
            last_i = i, last_y = y, last_x = x;
            float sum = head_bias[static_cast<size_t>(k)];
            for (int64_t o = 0; o < width; ++o)
                sum += head_weight[static_cast<size_t>(k * width + o)] * hidden[static_cast<size_t>(o)];
            return sum;
        });
    }

    void write_results(const Source &logit) {
        const int64_t h = symbol("H"), w = symbol("W"), k = description_["output"]["channels"];
        const std::string &kind = description_["output"]["kind"];
        const bool mask = description_["result"] == "mask";
        const int64_t image = stride("result_stride", "image"), row = stride("result_stride", "row");
        const auto address = of_kind("result");
        float threshold = 0;
        const uint64_t bits = of_kind("logit_threshold");
        std::memcpy(&threshold, &bits, 4);
        const int64_t pixel_bytes = mask ? 1 : 4 * k, item = mask ? 1 : 4;
        // A mask does not tell the size of its logits, but their sign.
        const float factor = mask && factor_ != 1.0F ? -1.0F : factor_;
        std::vector<float> logits(static_cast<size_t>(k));
        for (int64_t i = 0; i < n_; ++i)
            for (int64_t y = 0; y < h; ++y) {
                std::byte *const out = memory(address + static_cast<uint64_t>((i * image + y * row) * item),
                                              static_cast<size_t>(w * pixel_bytes));
                for (int64_t x = 0; x < w; ++x) {
                    for (int64_t c = 0; c < k; ++c)
                        logits[static_cast<size_t>(c)] = factor * logit(i, y, x, c);
                    const float largest = *std::max_element(logits.begin(), logits.end());
                    if (mask) {
                        out[x] = static_cast<std::byte>(
                            kind == "sigmoid" ? (logits[0] > threshold ? 255 : 0)
                                              : std::find(logits.begin(), logits.end(), largest) - logits.begin());
                        continue;
                    }
                    float sum = 0;
                    for (const float value : logits)
                        sum += std::exp(value - largest);
                    for (int64_t c = 0; c < k; ++c) {
                        const float value = logits[static_cast<size_t>(c)];
                        const float result = kind == "sigmoid"   ? 1.0F / (1.0F + std::exp(-value))
                                             : kind == "softmax" ? std::exp(value - largest) / sum
                                                                 : value;
                        std::memcpy(out + x * pixel_bytes + 4 * c, &result, 4);
                    }
                }
            }
    }

    const Launch &launch_;
    const KernelFunction &function_;
    const json &description_;
    const json &op_;
    const Type type_;
    const int64_t n_;
    const std::string activation_;
    const float slope_, factor_;
    std::array<int64_t, 2> kernel_{1, 1};
    std::array<int64_t, 4> padding_{};
    std::deque<std::vector<std::byte>> spare_;
};

} // namespace

void check_launch(const Launch &launch, const KernelFunction &function, int device) {
    if (function.device != device)
        state().violate("function of another context");
    Run(launch, function).check_launch();
}

void run_kernel(const Launch &launch, const KernelFunction &function) { Run(launch, function).run(); }

} // namespace fake
