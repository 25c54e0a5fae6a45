// The slow, obvious executor: every op of docs/design.md as one plain loop nest, float32 tensors, float64 sums. Tensors
// of uint8 are kept as whole numbers in float32; float64 adds those up exactly.

#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu_executor.h"
#include "planes.h"

namespace uf {
namespace {

// (count, height, width, channels); reads outside are zero.
struct Field {
    int64_t count = 0, height = 0, width = 0, channels = 0;
    std::vector<float> values;

    float &at(int64_t n, int64_t y, int64_t x, int64_t c) {
        return values[static_cast<size_t>(((n * height + y) * width + x) * channels + c)];
    }
    double read(int64_t n, int64_t y, int64_t x, int64_t c) const {
        if (y < 0 || y >= height || x < 0 || x >= width)
            return 0.0;
        return values[static_cast<size_t>(((n * height + y) * width + x) * channels + c)];
    }
    // Calls body(n, y, x, c) for every value.
    template <class Body> void each(const Body &body) const {
        for (int64_t n = 0; n < count; ++n)
            for (int64_t y = 0; y < height; ++y)
                for (int64_t x = 0; x < width; ++x)
                    for (int64_t c = 0; c < channels; ++c)
                        body(n, y, x, c);
    }
};

double sigmoid(double value) { return 1.0 / (1.0 + std::exp(-value)); }

float activate(double value, const Op &op) {
    switch (op.activation) {
    case Activation::relu:
        value = value < 0.0 ? 0.0 : value;
        break;
    case Activation::leaky_relu:
        value = value < 0.0 ? value * op.slope : value;
        break;
    case Activation::sigmoid:
        value = sigmoid(value);
        break;
    case Activation::tanh:
        value = std::tanh(value);
        break;
    default:
        break;
    }
    return static_cast<float>(value);
}

// What an op stores as channel o, from the sum of its products and its bias.
float stored(double sum, int64_t o, const Op &op) {
    if (!op.int8)
        return activate(sum, op);
    const float scale = op.tensor("scale").values[static_cast<size_t>(o)];
    if (op.output_scale > 0.0F)
        return nearest_byte(static_cast<float>(sum) * (scale / op.output_scale));
    return activate(static_cast<double>(static_cast<float>(sum) * scale), op);
}

// Channel c of softmax(field[n, y, x, :]).
double softmax(const Field &field, int64_t n, int64_t y, int64_t x, int64_t c) {
    double largest = field.read(n, y, x, 0), sum = 0.0;
    for (int64_t i = 1; i < field.channels; ++i)
        largest = std::max(largest, field.read(n, y, x, i));
    for (int64_t i = 0; i < field.channels; ++i)
        sum += std::exp(field.read(n, y, x, i) - largest);
    return std::exp(field.read(n, y, x, c) - largest) / sum;
}

// sum over ky, kx, i of weight[o, ky, kx, i] * x[n, y + ky, x + kx, i]
double window(const float *weight, int64_t o, int64_t rows, int64_t columns, const Field &from, int64_t n, int64_t y,
              int64_t x) {
    double sum = 0.0;
    for (int64_t ky = 0; ky < rows; ++ky)
        for (int64_t kx = 0; kx < columns; ++kx)
            for (int64_t i = 0; i < from.channels; ++i)
                sum += static_cast<double>(weight[((o * rows + ky) * columns + kx) * from.channels + i]) *
                       from.read(n, y + ky, x + kx, i);
    return sum;
}

// -- Winograd's form of int8, as docs/design.md defines it -----------------------------------------------------------

double cut(double number) { return std::clamp(number, -128.0, 127.0); }

// What position i of four takes of a window's pixels; `rounding`: 1 up, 0 down.
double of_window(const double (&pixel)[4], int64_t i, int rounding) {
    switch (i) {
    case 0:
        return cut(pixel[0] - pixel[2]);
    case 1:
        return std::floor((pixel[1] + pixel[2] + rounding) / 2);
    case 2:
        return cut(pixel[2] - pixel[1]);
    default:
        return cut(pixel[1] - pixel[3]);
    }
}

// What position i of three takes of a phase's window of the small tensor.
double of_phase(const double (&pixel)[4], int64_t i, int64_t phase) {
    if (i == 1)
        return pixel[1];
    const double difference = pixel[i] - pixel[1];
    return cut(i == 0 && phase == 1 ? -difference : difference);
}

// The tiles of a field at `side` x `side` positions: (count, rows, columns, side, side, channels).
struct Positions {
    int64_t side = 0, rows = 0, columns = 0, channels = 0;
    std::vector<float> values;

    const float *at(int64_t n, int64_t row, int64_t column) const {
        return values.data() + ((n * rows + row) * columns + column) * side * side * channels;
    }
};

// Windows begin at (first_y, first_x) and every other pixel from there on; along(pixels, position, axis) is of_window
// or of_phase.
template <class Along>
Positions transform(const Field &from, int64_t side, int64_t first_y, int64_t first_x, const Along &along) {
    Positions result;
    result.side = side;
    result.rows = (from.height + 1) / 2;
    result.columns = (from.width + 1) / 2;
    result.channels = from.channels;
    for (int64_t n = 0; n < from.count; ++n)
        for (int64_t y = first_y; y < first_y + 2 * result.rows; y += 2)
            for (int64_t x = first_x; x < first_x + 2 * result.columns; x += 2)
                for (int64_t i = 0; i < side; ++i)
                    for (int64_t j = 0; j < side; ++j)
                        for (int64_t c = 0; c < from.channels; ++c) {
                            double row[4];
                            for (int64_t dx = 0; dx < 4; ++dx) {
                                double pixel[4];
                                for (int64_t dy = 0; dy < 4; ++dy)
                                    pixel[dy] = from.read(n, y + dy, x + dx, c);
                                row[dx] = along(pixel, i, 0);
                            }
                            result.values.push_back(static_cast<float>(along(row, j, 1)));
                        }
    return result;
}

Positions transform_windows(const Field &from) {
    return transform(from, 4, -1, -1, [](const double (&pixel)[4], int64_t i, int axis) {
        return of_window(pixel, i, axis == 0 ? 1 : 0);
    });
}

Positions transform_phase(const Field &low, int64_t phase_y, int64_t phase_x) {
    return transform(low, 3, phase_y - 1, phase_x - 1, [=](const double (&pixel)[4], int64_t i, int axis) {
        return of_phase(pixel, i, axis == 0 ? phase_y : phase_x);
    });
}

// Output (y, x) of the tiles, with weight (side, side, C); taken[a][i]: how often output a takes position i.
template <size_t side>
double from_tiles(const double (&taken)[2][side], const float *weight, const Positions &from, int64_t n, int64_t y,
                  int64_t x) {
    const float *at = from.at(n, y / 2, x / 2);
    double sum = 0.0;
    for (size_t i = 0; i < side; ++i)
        for (size_t j = 0; j < side; ++j)
            for (int64_t c = 0; c < from.channels; ++c)
                sum += taken[y % 2][i] * taken[x % 2][j] * static_cast<double>(*weight++) * static_cast<double>(*at++);
    return sum;
}

constexpr double from_window[2][4] = {{1, 2, 1, 0}, {0, 2, -1, -1}}, from_phase[2][3] = {{1, 1, 0}, {0, 1, 1}};

double interpolate(UpsampleMode mode, int scale, const Field &from, int64_t n, int64_t y, int64_t x, int64_t c) {
    if (mode == UpsampleMode::nearest)
        return from.read(n, y / scale, x / scale, c);
    const auto source = [&](int64_t position, int64_t size) {
        if (mode == UpsampleMode::bilinear)
            return std::max(0.0, (static_cast<double>(position) + 0.5) / scale - 0.5);
        const int64_t last = size * scale - 1;
        return last == 0 ? 0.0 : static_cast<double>(position * (size - 1)) / static_cast<double>(last);
    };
    const double source_y = source(y, from.height), source_x = source(x, from.width);
    const auto top = static_cast<int64_t>(source_y), left = static_cast<int64_t>(source_x);
    const int64_t bottom = std::min(top + 1, from.height - 1), right = std::min(left + 1, from.width - 1);
    const double down = source_y - static_cast<double>(top), across = source_x - static_cast<double>(left);
    return (1 - down) * ((1 - across) * from.read(n, top, left, c) + across * from.read(n, top, right, c)) +
           down * ((1 - across) * from.read(n, bottom, left, c) + across * from.read(n, bottom, right, c));
}

class ReferenceContext final : public Context {
  public:
    ReferenceContext(std::shared_ptr<const Plan> plan, const PassShape &shape) : plan_(std::move(plan)), shape_(shape) {
        for (const Buffer &buffer : plan_->buffers) {
            bytes_ += static_cast<double>(sizeof(float)) * shape.count * buffer.channels *
                      static_cast<double>(buffer.height.at(shape.height)) *
                      static_cast<double>(buffer.width.at(shape.width));
        }
        require_memory(shape, bytes_);
        for (const Buffer &buffer : plan_->buffers) {
            Field field;
            field.count = shape.count;
            field.height = buffer.height.at(shape.height);
            field.width = buffer.width.at(shape.width);
            field.channels = buffer.channels;
            field.values.resize(static_cast<size_t>(field.count * field.height * field.width * field.channels));
            fields_.push_back(std::move(field));
        }
    }

    PassShape shape() const override { return shape_; }
    double bytes() const override { return bytes_; }

    void run(const ImageView *images, const PixelTransform *transforms, int count, float logit_threshold,
             const OutputView *outputs, void *) override {
        normalise(images, transforms, count);
        for (Field &field : fields_)
            field.count = count;
        for (const Op &op : plan_->ops) {
            switch (op.kind) {
            case OpKind::stem:
            case OpKind::conv:
                conv(op, output(op));
                if (op.outputs.size() == 2)
                    pool(PoolMode::max, {2, 2}, output(op), fields_[op.outputs[1]]);
                break;
            case OpKind::up_conv:
                up_conv(op);
                break;
            case OpKind::concat_conv:
                concat_conv(op);
                break;
            case OpKind::head:
                head(op, logit_threshold, outputs);
                break;
            case OpKind::output:
                write_result(fields_[op.inputs[0]], logit_threshold, outputs);
                break;
            case OpKind::normalise:
                fields_[op.outputs[0]].values = fields_[0].values;
                break;
            case OpKind::conv_transpose:
                conv_transpose(op);
                break;
            case OpKind::pool:
                pool(op.pool, op.kernel, fields_[op.inputs[0]], fields_[op.outputs[0]]);
                break;
            case OpKind::upsample:
                upsample(op);
                break;
            case OpKind::pad:
                pad(op);
                break;
            case OpKind::concat:
                concat(op);
                break;
            case OpKind::add:
                add(op);
                break;
            case OpKind::activation:
                activation(op);
                break;
            case OpKind::affine:
                affine(op);
                break;
            case OpKind::l2_normalise:
                l2_normalise(op);
                break;
            case OpKind::quantise:
                quantise(op);
                break;
            case OpKind::dequantise:
                dequantise(op);
                break;
            }
        }
    }

  private:
    const Field &input(const Op &op, size_t i = 0) const { return fields_[op.inputs[i]]; }
    Field &output(const Op &op) { return fields_[op.outputs[0]]; }

    static double pixel(const ImageView &image, int64_t y, int64_t x, int64_t c) {
        const std::byte *at = image.data + y * image.row_stride + x * image.pixel_stride + c * image.channel_stride;
        switch (image.type) {
        case PixelType::uint8:
            return *reinterpret_cast<const uint8_t *>(at);
        case PixelType::uint16:
            return *reinterpret_cast<const uint16_t *>(at);
        case PixelType::float32:
            return *reinterpret_cast<const float *>(at);
        }
        return 0.0;
    }

    void normalise(const ImageView *images, const PixelTransform *transforms, int count) {
        Field &to = fields_[0];
        to.count = count;
        to.each([&](int64_t n, int64_t y, int64_t x, int64_t c) {
            const float scaled = static_cast<float>(pixel(images[n], y, x, c)) * transforms[n].scale[c];
            to.at(n, y, x, c) = scaled + transforms[n].shift[c];
        });
    }

    void conv(const Op &op, Field &to) {
        const Field &from = input(op);
        const float *weight = op.tensor("weight").values.data(), *bias = op.tensor("bias").values.data();
        if (op.kind == OpKind::stem && op.output_scale > 0.0F)
            return stem_to_bytes(op, from, to);
        const Positions tiles = op.winograd ? transform_windows(from) : Positions{};
        to.each([&](int64_t n, int64_t y, int64_t x, int64_t o) {
            const double sum = op.winograd ? from_tiles(from_window, weight + o * 16 * from.channels, tiles, n, y, x)
                                           : window(weight, o, op.kernel[0], op.kernel[1], from, n, y - op.padding[0],
                                                    x - op.padding[1]);
            to.at(n, y, x, o) = stored(sum + bias[o], o, op);
        });
    }

    // In float32 and in this order in every executor, as behind it a last bit can decide between two bytes.
    static void stem_to_bytes(const Op &op, const Field &from, Field &to) {
        const float *weight = op.tensor("weight").values.data(), *bias = op.tensor("bias").values.data();
        to.each([&](int64_t n, int64_t y, int64_t x, int64_t o) {
            float sum = bias[o];
            for (int64_t i = 0; i < from.channels; ++i)
                for (int64_t ky = 0; ky < op.kernel[0]; ++ky)
                    for (int64_t kx = 0; kx < op.kernel[1]; ++kx)
                        sum += weight[((o * op.kernel[0] + ky) * op.kernel[1] + kx) * from.channels + i] *
                               static_cast<float>(from.read(n, y - op.padding[0] + ky, x - op.padding[1] + kx, i));
            to.at(n, y, x, o) = nearest_byte(sum * (1.0F / op.output_scale));
        });
    }

    void up_conv(const Op &op) {
        const Field &low = input(op, 0), &skip = input(op, 1);
        Field &to = output(op);
        const float *weight_up = op.tensor("weight_up").values.data();
        const float *weight_skip = op.tensor("weight_skip").values.data(), *bias = op.tensor("bias").values.data();
        const int64_t padding = op.padding[0];
        const auto border = [&](int64_t position, int64_t size) {
            return padding == 0 ? 1 : position == 0 ? 0 : position == size - 1 ? 2 : 1;
        };
        // All products of one output.
        const auto direct = [&](int64_t n, int64_t y, int64_t x, int64_t o) {
            const int64_t middle_y = y + 1 - padding, middle_x = x + 1 - padding;
            const int64_t phase_y = middle_y & 1, phase_x = middle_x & 1;
            const float *phase = weight_up + (2 * phase_y + phase_x) * to.channels * 4 * low.channels;
            return window(phase, o, 2, 2, low, n, (middle_y >> 1) - 1 + phase_y, (middle_x >> 1) - 1 + phase_x) +
                   window(weight_skip, o, 3, 3, skip, n, y - padding + op.crop[0], x - padding + op.crop[1]);
        };
        Positions tiles;
        std::vector<Positions> phases;
        if (op.winograd) {
            tiles = transform_windows(skip);
            for (int64_t phase = 0; phase < 4; ++phase)
                phases.push_back(transform_phase(low, phase / 2, phase % 2));
        }
        const auto in_tiles = [&](int64_t n, int64_t y, int64_t x, int64_t o) {
            const int64_t phase = 2 * (y % 2) + x % 2;
            const float *of_phase = weight_up + (phase * to.channels + o) * 9 * low.channels;
            return from_tiles(from_phase, of_phase, phases[static_cast<size_t>(phase)], n, y / 2, x / 2) +
                   from_tiles(from_window, weight_skip + o * 16 * skip.channels, tiles, n, y, x);
        };
        to.each([&](int64_t n, int64_t y, int64_t x, int64_t o) {
            const double sum = op.winograd ? in_tiles(n, y, x, o) : direct(n, y, x, o);
            const int64_t border_class = 3 * border(y, to.height) + border(x, to.width);
            to.at(n, y, x, o) = stored(sum + bias[border_class * to.channels + o], o, op);
        });
    }

    void concat_conv(const Op &op) {
        const Field &a = input(op, 0), &b = input(op, 1);
        Field &to = output(op);
        const bool magnifies = op.upsample != UpsampleMode::none;
        Field up = a;
        if (magnifies) {
            up.height *= 2;
            up.width *= 2;
            up.values.resize(a.values.size() * 4);
            up.each([&](int64_t n, int64_t y, int64_t x, int64_t c) {
                up.at(n, y, x, c) = static_cast<float>(interpolate(op.upsample, 2, a, n, y, x, c));
            });
        }
        const float *weight_a = op.tensor("weight_a").values.data(), *weight_b = op.tensor("weight_b").values.data();
        const float *bias = op.tensor("bias").values.data();
        to.each([&](int64_t n, int64_t y, int64_t x, int64_t o) {
            const int64_t top = y - op.padding[0], left = x - op.padding[1];
            const double sum =
                window(weight_a, o, op.kernel[0], op.kernel[1], up, n, top, left) +
                window(weight_b, o, op.kernel[0], op.kernel[1], b, n, top + op.crop[0], left + op.crop[1]);
            to.at(n, y, x, o) = stored(sum + bias[o], o, op);
        });
    }

    void head(const Op &op, float logit_threshold, const OutputView *outputs) {
        const Field &from = input(op);
        Field features;
        features.count = from.count;
        features.height = from.height + op.padding[0] + op.padding[2] - op.kernel[0] + 1;
        features.width = from.width + op.padding[1] + op.padding[3] - op.kernel[1] + 1;
        features.channels = static_cast<int64_t>(op.tensor("bias").values.size());
        features.values.resize(
            static_cast<size_t>(features.count * features.height * features.width * features.channels));
        conv(op, features);

        Field logits = features;
        logits.channels = plan_->output_channels;
        logits.values.resize(static_cast<size_t>(logits.count * logits.height * logits.width * logits.channels));
        const float *weight = op.tensor("head_weight").values.data(), *bias = op.tensor("head_bias").values.data();
        logits.each([&](int64_t n, int64_t y, int64_t x, int64_t k) {
            if (!op.int8) {
                logits.at(n, y, x, k) = static_cast<float>(window(weight, k, 1, 1, features, n, y, x) + bias[k]);
                return;
            }
            // Behind int8, every executor adds in this order in float32, and so gives the same bits.
            float sum = bias[k];
            for (int64_t i = 0; i < features.channels; ++i)
                sum += weight[k * features.channels + i] * features.at(n, y, x, i);
            logits.at(n, y, x, k) = sum;
        });
        write_result(logits, logit_threshold, outputs);
    }

    void write_result(const Field &logits, float logit_threshold, const OutputView *outputs) const {
        logits.each([&](int64_t n, int64_t y, int64_t x, int64_t k) {
            std::byte *row = outputs[n].data + y * outputs[n].row_stride;
            const double logit = logits.read(n, y, x, k);
            if (outputs[n].type == ResultType::probability) {
                float &to = reinterpret_cast<float *>(row)[x * logits.channels + k];
                switch (plan_->output_kind) {
                case OutputKind::sigmoid:
                    to = static_cast<float>(sigmoid(logit));
                    break;
                case OutputKind::softmax:
                    to = static_cast<float>(softmax(logits, n, y, x, k));
                    break;
                case OutputKind::identity:
                    to = static_cast<float>(logit);
                    break;
                }
                return;
            }
            auto &to = reinterpret_cast<uint8_t *>(row)[x];
            if (plan_->output_kind == OutputKind::softmax) {
                if (k == 0 || logit > logits.read(n, y, x, to))
                    to = static_cast<uint8_t>(k);
            } else if (k == 0) {
                to = logit > logit_threshold ? 255 : 0;
            }
        });
    }

    void conv_transpose(const Op &op) {
        const Field &from = input(op);
        Field &to = output(op);
        const float *weight = op.tensor("weight").values.data(), *bias = op.tensor("bias").values.data();
        to.each([&](int64_t n, int64_t y, int64_t x, int64_t o) {
            double sum = 0.0;
            for (int64_t ky = 0; ky < op.kernel[0]; ++ky)
                for (int64_t kx = 0; kx < op.kernel[1]; ++kx) {
                    const int64_t up_y = y + op.padding[0] - ky, up_x = x + op.padding[1] - kx;
                    if (up_y % op.stride[0] != 0 || up_x % op.stride[1] != 0)
                        continue;
                    for (int64_t i = 0; i < from.channels; ++i)
                        sum += static_cast<double>(
                                   weight[((o * op.kernel[0] + ky) * op.kernel[1] + kx) * from.channels + i]) *
                               from.read(n, up_y / op.stride[0], up_x / op.stride[1], i);
                }
            to.at(n, y, x, o) = stored(sum + bias[o], o, op);
        });
    }

    static void pool(PoolMode mode, std::array<int, 2> kernel, const Field &from, Field &to) {
        to.each([&](int64_t n, int64_t y, int64_t x, int64_t c) {
            double sum = 0.0, largest = from.read(n, y * kernel[0], x * kernel[1], c);
            for (int64_t ky = 0; ky < kernel[0]; ++ky)
                for (int64_t kx = 0; kx < kernel[1]; ++kx) {
                    const double value = from.read(n, y * kernel[0] + ky, x * kernel[1] + kx, c);
                    sum += value;
                    largest = value > largest || std::isnan(value) ? value : largest;
                }
            to.at(n, y, x, c) = static_cast<float>(mode == PoolMode::max ? largest : sum / (kernel[0] * kernel[1]));
        });
    }

    void upsample(const Op &op) {
        Field &to = output(op);
        to.each([&](int64_t n, int64_t y, int64_t x, int64_t c) {
            to.at(n, y, x, c) = static_cast<float>(interpolate(op.upsample, op.scale, input(op), n, y, x, c));
        });
    }

    void pad(const Op &op) {
        Field &to = output(op);
        to.each([&](int64_t n, int64_t y, int64_t x, int64_t c) {
            to.at(n, y, x, c) = static_cast<float>(input(op).read(n, y - op.padding[0], x - op.padding[1], c));
        });
    }

    void concat(const Op &op) {
        Field &to = output(op);
        int64_t first = 0;
        for (size_t i = 0; i < op.inputs.size(); first += input(op, i).channels, ++i)
            input(op, i).each([&](int64_t n, int64_t y, int64_t x, int64_t c) {
                to.at(n, y, x, first + c) = static_cast<float>(input(op, i).read(n, y, x, c));
            });
    }

    void add(const Op &op) {
        Field &to = output(op);
        to.each([&](int64_t n, int64_t y, int64_t x, int64_t c) {
            to.at(n, y, x, c) = activate(input(op, 0).read(n, y, x, c) + input(op, 1).read(n, y, x, c), op);
        });
    }

    void activation(const Op &op) {
        const Field &from = input(op);
        Field &to = output(op);
        to.each([&](int64_t n, int64_t y, int64_t x, int64_t c) {
            to.at(n, y, x, c) = op.activation == Activation::softmax ? static_cast<float>(softmax(from, n, y, x, c))
                                                                     : activate(from.read(n, y, x, c), op);
        });
    }

    void affine(const Op &op) {
        const float *scale = op.tensor("scale").values.data(), *shift = op.tensor("shift").values.data();
        Field &to = output(op);
        to.each([&](int64_t n, int64_t y, int64_t x, int64_t c) {
            to.at(n, y, x, c) = activate(input(op).read(n, y, x, c) * scale[c] + shift[c], op);
        });
    }

    void l2_normalise(const Op &op) {
        const Field &from = input(op);
        Field &to = output(op);
        to.each([&](int64_t n, int64_t y, int64_t x, int64_t c) {
            double squares = 0.0;
            const bool column = op.line == Line::column;
            for (int64_t i = 0; i < (column ? from.height : from.width); ++i) {
                const double value = column ? from.read(n, i, x, c) : from.read(n, y, i, c);
                squares += value * value;
            }
            to.at(n, y, x, c) = static_cast<float>(from.read(n, y, x, c) / (squares > 0.0 ? std::sqrt(squares) : 1.0));
        });
    }

    void quantise(const Op &op) {
        Field &to = output(op);
        to.each([&](int64_t n, int64_t y, int64_t x, int64_t c) {
            to.at(n, y, x, c) = nearest_byte(static_cast<float>(input(op).read(n, y, x, c)) * (1.0F / op.output_scale));
        });
    }

    void dequantise(const Op &op) {
        const float scale = plan_->buffers[static_cast<size_t>(op.inputs[0])].scale;
        Field &to = output(op);
        to.each([&](int64_t n, int64_t y, int64_t x, int64_t c) {
            to.at(n, y, x, c) = static_cast<float>(input(op).read(n, y, x, c)) * scale;
        });
    }

    std::shared_ptr<const Plan> plan_;
    PassShape shape_;
    double bytes_ = 0;          // of all fields
    std::vector<Field> fields_; // per buffer of the plan; [0] is the normalised image
};

class ReferenceExecutor final : public Executor {
  public:
    explicit ReferenceExecutor(std::shared_ptr<const Plan> plan) : plan_(std::move(plan)) {}
    std::unique_ptr<Context> make_context(const PassShape &shape) const override {
        return std::make_unique<ReferenceContext>(plan_, shape);
    }
    std::string device() const override { return "cpu-reference"; }
    std::string precision() const override { return plan_->precision == "int8" ? "int8" : "float32"; }
    std::string isa() const override { return "portable"; }

  private:
    std::shared_ptr<const Plan> plan_;
};

} // namespace

std::unique_ptr<Executor> make_reference_executor(std::shared_ptr<const Plan> plan) {
    auto copy = std::make_shared<Plan>(*plan);
    for (Op &op : copy->ops)
        for (auto &[name, tensor] : op.tensors)
            if (!tensor.integers.empty())
                tensor.values = std::vector<float>(tensor.integers.begin(), tensor.integers.end());
    return std::make_unique<ReferenceExecutor>(std::move(copy));
}

} // namespace uf
