#include "engine.h"

#include <sched.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>
#include <set>

#include "cpu/cpu_executor.h"
#include "cuda/cuda_executor.h"
#include "error.h"
#include "host_copies.h"
#include "message.h"

namespace uf {

namespace {

constexpr int most_threads = 1024;

// Several small images go through one pass; more pixels than this gain nothing and only take memory.
constexpr int64_t most_pass_pixels = int64_t{1} << 20;
constexpr int64_t most_pass_images = 8;

int checked_threads(const EngineOptions &options) {
    if (options.threads < 0 || options.threads > most_threads)
        throw Error(UF_ERR_INVALID_ARGUMENT, message("options.threads is ", options.threads,
                                                     ", accepted are 0 (one per "
                                                     "physical core) to ",
                                                     most_threads));
    if (options.device == "cpu-reference")
        return 1;
    return options.threads != 0 ? options.threads : physical_cores();
}

struct Choice {
    std::unique_ptr<Executor> executor;
    std::string reason;
};

// The one place that knows which executors there are.
Choice choose_executor(const std::shared_ptr<const Plan> &plan, const std::shared_ptr<ThreadPool> &threads,
                       const EngineOptions &options) {
    const std::set<std::string> precisions = {"auto", "float32", "bf16", "fp16"};
    if (precisions.count(options.precision) == 0)
        throw Error(UF_ERR_INVALID_ARGUMENT, message("options.precision is ", in_quotes(options.precision),
                                                     ", accepted are auto, float32, bf16 and fp16"));
    if (options.device == "cpu-reference") {
        if (options.precision != "auto" && options.precision != "float32")
            throw Error(UF_ERR_UNSUPPORTED,
                        message("device cpu-reference computes in float32, not in ", options.precision));
        return {make_reference_executor(plan), "asked for"};
    }
    if (options.device == "cuda" || options.device.rfind("cuda:", 0) == 0) {
        if (options.refuse_embedded_code)
            throw Error(UF_ERR_UNSUPPORTED, message("device ", in_quotes(options.device),
                                                    " runs GPU code of the file, which the "
                                                    "options refuse; use device cpu, or accept the code"));
        return {make_cuda_executor(plan, options.device, options.precision), "asked for"};
    }
    if (options.device != "auto" && options.device != "cpu")
        throw Error(UF_ERR_INVALID_ARGUMENT, message("options.device is ", in_quotes(options.device),
                                                     ", accepted are auto, cpu, cpu-reference, cuda and cuda:N"));
    std::string reason = options.device == "cpu" ? "asked for" : "GPU code in the file is refused";
    if (options.device == "auto" && !options.refuse_embedded_code) {
        try {
            auto executor = make_cuda_executor(plan, "cuda", options.precision);
            return {std::move(executor), "a GPU that can run this file"};
        } catch (const Error &error) {
            reason = error.what();
        }
    }
    if (options.precision == "fp16")
        throw Error(UF_ERR_UNSUPPORTED, message("precision fp16 needs a GPU; the CPU offers float32 and bf16",
                                                options.device == "auto" ? "; " + reason : ""));
    return {make_cpu_executor(plan, threads, options.precision, options.cpu_isa), reason};
}

float logit(float probability) {
    const double value = static_cast<double>(probability);
    return static_cast<float>(std::log(value / (1.0 - value)));
}

// How many of `items` windows go through one pass: a power of two, so that few shapes of context are in use.
int pass_count(int64_t items, const Layout &layout) {
    const int64_t most = std::clamp<int64_t>(most_pass_pixels / (layout.y.side * layout.x.side), 1, most_pass_images);
    int64_t count = 1;
    while (count < items && count * 2 <= most)
        count *= 2;
    return static_cast<int>(count);
}

PassShape pass_shape(int64_t items, const Layout &layout) {
    return {pass_count(items, layout), static_cast<int>(layout.y.side), static_cast<int>(layout.x.side)};
}

// Hands the windows of a layout to a context: straight from the image where they lie inside it, else by mirrored
// copies.
class WindowReader {
  public:
    WindowReader(const Layout &layout, const ImageBatch &images, Workspace &workspace)
        : layout_(layout), images_(images), workspace_(workspace) {
        const auto inside = [&](const TileAxis &axis, int64_t size) {
            return layout.mirror == 0 && axis.tiles.back().origin + axis.side <= size;
        };
        bytes_ = static_cast<size_t>(layout.y.side * layout.x.side * images.channels) * pixel_bytes(images.first.type);
        if (!inside(layout.y, images.height) || !inside(layout.x, images.width))
            workspace.pixels.resize(bytes_ * workspace.images.size());
    }

    // Makes the window of these tiles the pass's image number `slot`.
    void read(size_t slot, int index, const TileSpan &y, const TileSpan &x, const PixelTransform &transform) {
        const int64_t top = y.origin - layout_.mirror, left = x.origin - layout_.mirror;
        ImageView view = images_[index];
        if (top >= 0 && left >= 0 && top + layout_.y.side <= images_.height && left + layout_.x.side <= images_.width) {
            view.data += top * view.row_stride + left * view.pixel_stride;
        } else {
            std::byte *copy = workspace_.pixels.data() + slot * bytes_;
            copy_mirrored(images_, index, top, left, layout_.y.side, layout_.x.side, copy);
            view = tight_view(copy, view.type, layout_.x.side, images_.channels);
        }
        workspace_.images[slot] = view;
        workspace_.transforms[slot] = transform;
    }

  private:
    const Layout &layout_;
    const ImageBatch &images_;
    Workspace &workspace_;
    size_t bytes_ = 0; // of one window
};

} // namespace

int physical_cores() {
    // Room for more processors than Linux supports today.
    constexpr size_t most_processors = 1 << 14;
    cpu_set_t *allowed = CPU_ALLOC(most_processors);
    if (allowed == nullptr)
        return 1;
    const size_t bytes = CPU_ALLOC_SIZE(most_processors);
    std::set<std::string> cores;
    if (sched_getaffinity(0, bytes, allowed) == 0)
        for (size_t processor = 0; processor < most_processors; ++processor) {
            if (!CPU_ISSET_S(processor, bytes, allowed))
                continue;
            // Hyperthreads of one core show the same list of siblings.
            std::ifstream file(message("/sys/devices/system/cpu/cpu", processor, "/topology/thread_siblings_list"));
            std::string siblings;
            std::getline(file, siblings);
            cores.insert(siblings.empty() ? message("processor ", processor) : siblings);
        }
    CPU_FREE(allowed);
    int count = std::clamp<int>(static_cast<int>(cores.size()), 1, most_threads);
    // A container may be granted less time than it sees processors: "max 100000" or "150000 100000".
    std::ifstream limits("/sys/fs/cgroup/cpu.max");
    double quota = 0, period = 0;
    if (limits >> quota >> period && period > 0)
        count = std::clamp<int>(static_cast<int>(std::ceil(quota / period)), 1, count);
    return count;
}

Engine::Engine(std::shared_ptr<const Plan> plan, const EngineOptions &options)
    : plan_(std::move(plan)), options_(options), threads_(std::make_shared<ThreadPool>(checked_threads(options))) {
    Choice choice = choose_executor(plan_, threads_, options);
    first_ = make_backend(std::move(choice.executor), choice.reason);
    backend_ = &first_;
}

Engine::Backend Engine::make_backend(std::unique_ptr<Executor> executor, const std::string &reason) const {
    Backend backend;
    backend.executor = std::move(executor);
    backend.device = backend.executor->device();
    backend.reason = reason;
    backend.precision = backend.executor->precision();
    backend.isa = backend.executor->isa();
    backend.contexts = std::make_unique<ContextPool>(*backend.executor, *plan_);
    return backend;
}

bool Engine::fall_back(const Executor &lost, const Error &error) {
    if (error.status() != UF_ERR_DEVICE_LOST || options_.device != "auto")
        return false;
    const std::lock_guard<std::mutex> lock(fallback_mutex_);
    if (&executor() == &lost) {
        const std::string precision = options_.precision == "fp16" ? "auto" : options_.precision;
        fallback_ = make_backend(make_cpu_executor(plan_, threads_, precision, options_.cpu_isa), error.what());
        backend_ = &fallback_;
    }
    return true;
}

uf_info Engine::info() const {
    uf_info info = {};
    info.struct_size = sizeof info;
    info.channels = plan_->channels;
    info.output_channels = plan_->output_channels;
    info.output_kind = static_cast<int32_t>(plan_->output_kind);
    info.tile = plan_->tile;
    info.multiple = plan_->multiple;
    info.remainder = plan_->remainder;
    info.minimum = plan_->minimum;
    info.margin = plan_->margin;
    info.halo = plan_->halo;
    info.threads = threads_->threads();
    info.op_count = static_cast<int32_t>(plan_->ops.size());
    info.threshold = plan_->threshold;
    info.name = plan_->name.c_str();
    info.device = backend().device.c_str();
    info.device_reason = backend().reason.c_str();
    info.precision = backend().precision.c_str();
    info.cpu_isa = backend().isa.c_str();
    return info;
}

void Engine::segment(const ImageBatch &images, const RunOptions &options, const Layout &layout,
                     const OutputBatch &outputs) {
    const Executor &used = executor();
    if (images.first.on_device)
        used.check_device_memory(images.first.data, "image");
    if (outputs.first.on_device)
        used.check_device_memory(outputs.first.data, "output");
    try {
        // The GPU takes whole images from where they are; for all else, host code looks at the pixels.
        const auto whole = [](const TileAxis &axis, int64_t size) {
            return axis.tiles.size() == 1 && axis.side == size && axis.result == axis.core;
        };
        const bool direct = layout.kind == Layout::Kind::abutting && layout.mirror == 0 &&
                            whole(layout.y, images.height) && whole(layout.x, images.width) &&
                            plan_->normalisation.kind == NormalisationKind::fixed;
        if (direct) {
            segment_here(images, options, layout, outputs);
            return;
        }
        const HostImages host_images(used, images);
        const HostOutputs host_outputs(used, *plan_, outputs, images.count, layout.height, layout.width);
        segment_here(host_images.batch(), options, layout, host_outputs.batch());
        host_outputs.write_back();
    } catch (const Error &error) {
        if (images.first.on_device || outputs.first.on_device || !fall_back(used, error))
            throw;
        segment_here(images, options, layout, outputs);
    }
}

void Engine::segment_here(const ImageBatch &images, const RunOptions &options, const Layout &layout,
                          const OutputBatch &outputs) {
    if (!images.first.on_device)
        require_finite(images);
    std::vector<PixelTransform> transforms;
    for (int index = 0; index < images.count; ++index)
        transforms.push_back(pixel_transform(*plan_, images, index));
    switch (layout.kind) {
    case Layout::Kind::abutting:
        run_abutting(layout, images, transforms, options.threshold, outputs);
        break;
    case Layout::Kind::blended:
        for (int index = 0; index < images.count; ++index)
            run_blended(layout, images, index, transforms[static_cast<size_t>(index)], options.threshold,
                        outputs[index]);
        break;
    case Layout::Kind::resized:
        run_resized(layout, images, transforms, options.threshold, outputs);
        break;
    }
}

void Engine::run_abutting(const Layout &layout, const ImageBatch &images, const std::vector<PixelTransform> &transforms,
                          float threshold, const OutputBatch &outputs) {
    ContextPool &contexts = *backend().contexts;
    const auto columns = static_cast<int64_t>(layout.x.tiles.size());
    const int64_t tiles = columns * static_cast<int64_t>(layout.y.tiles.size());
    const int64_t items = tiles * images.count;
    std::unique_ptr<Workspace> workspace = contexts.take(pass_shape(items, layout));
    const auto batch = static_cast<int64_t>(workspace->images.size());
    WindowReader windows(layout, images, *workspace);

    // A tile that gives all of its pixels writes to the caller's memory, any other to staging.
    const auto all_used = [](const TileAxis &axis) {
        return
            [&axis](const TileSpan &tile) { return tile.begin == tile.origin && tile.end == tile.origin + axis.core; };
    };
    const auto all_rows = all_used(layout.y), all_columns = all_used(layout.x);
    const auto bytes_per_pixel = static_cast<int64_t>(result_bytes(outputs.first.type, *plan_));
    const int64_t staging_row = layout.x.core * bytes_per_pixel, staging = layout.y.core * staging_row;
    if (!std::all_of(layout.y.tiles.begin(), layout.y.tiles.end(), all_rows) ||
        !std::all_of(layout.x.tiles.begin(), layout.x.tiles.end(), all_columns))
        workspace->results.resize(static_cast<size_t>(staging * batch));

    struct Place {
        int image;
        const TileSpan &y, &x;
    };
    const auto place = [&](int64_t item) -> Place {
        return {static_cast<int>(item / tiles), layout.y.tiles[static_cast<size_t>(item % tiles / columns)],
                layout.x.tiles[static_cast<size_t>(item % columns)]};
    };
    const auto in_place = [&](const Place &at) { return all_rows(at.y) && all_columns(at.x); };
    const auto target = [&](const Place &at) {
        OutputView view = outputs[at.image];
        view.data += at.y.begin * view.row_stride + at.x.begin * bytes_per_pixel;
        return view;
    };

    for (int64_t first = 0; first < items; first += batch) {
        const int64_t count = std::min(batch, items - first);
        for (int64_t i = 0; i < count; ++i) {
            const Place at = place(first + i);
            windows.read(static_cast<size_t>(i), at.image, at.y, at.x, transforms[static_cast<size_t>(at.image)]);
            workspace->outputs[static_cast<size_t>(i)] =
                in_place(at) ? target(at)
                             : OutputView{workspace->results.data() + i * staging, outputs.first.type, staging_row};
        }
        workspace->context->run(workspace->images.data(), workspace->transforms.data(), static_cast<int>(count),
                                logit(threshold), workspace->outputs.data(), nullptr);
        for (int64_t i = 0; i < count; ++i) {
            const Place at = place(first + i);
            if (in_place(at))
                continue;
            const OutputView to = target(at);
            const std::byte *from = workspace->results.data() + i * staging + (at.y.begin - at.y.origin) * staging_row +
                                    (at.x.begin - at.x.origin) * bytes_per_pixel;
            for (int64_t row = 0; row < at.y.end - at.y.begin; ++row)
                std::memcpy(to.data + row * to.row_stride, from + row * staging_row,
                            static_cast<size_t>((at.x.end - at.x.begin) * bytes_per_pixel));
        }
    }
    contexts.give_back(std::move(workspace));
}

void Engine::run_blended(const Layout &layout, const ImageBatch &images, int index, const PixelTransform &transform,
                         float threshold, const OutputView &output) {
    ContextPool &contexts = *backend().contexts;
    const std::vector<TileSpan> &columns = layout.x.tiles;
    std::unique_ptr<Workspace> workspace = contexts.take(pass_shape(static_cast<int64_t>(columns.size()), layout));
    const size_t batch = workspace->images.size();
    WindowReader windows(layout, images, *workspace);
    const auto weights_y = blend_weights(layout.y, layout.overlap), weights_x = blend_weights(layout.x, layout.overlap);
    const int64_t channels = plan_->output_channels;
    const int64_t tile_row = layout.x.core * channels, tile_values = layout.y.core * tile_row;
    workspace->results.resize(static_cast<size_t>(tile_values) * batch * sizeof(float));
    auto *const results = reinterpret_cast<float *>(workspace->results.data());

    // The sums of one row of tiles; what the next row of tiles does not add to is written out, the rest moves up.
    const int64_t band_row = layout.width * channels;
    std::vector<float> band(static_cast<size_t>(std::min(layout.y.core, layout.height) * band_row), 0.0F);
    for (size_t row = 0; row < layout.y.tiles.size(); ++row) {
        const TileSpan &y = layout.y.tiles[row];
        for (size_t first = 0; first < columns.size(); first += batch) {
            const size_t count = std::min(batch, columns.size() - first);
            for (size_t i = 0; i < count; ++i) {
                windows.read(i, index, y, columns[first + i], transform);
                workspace->outputs[i] = {workspace->results.data() +
                                             i * static_cast<size_t>(tile_values) * sizeof(float),
                                         ResultType::probability, tile_row * static_cast<int64_t>(sizeof(float))};
            }
            workspace->context->run(workspace->images.data(), workspace->transforms.data(), static_cast<int>(count),
                                    0.0F, workspace->outputs.data(), nullptr);
            threads_->run(y.end - y.begin, [&](int64_t line, int) {
                const float weight_y = weights_y[row][static_cast<size_t>(line)];
                for (size_t i = 0; i < count; ++i) {
                    const TileSpan &x = columns[first + i];
                    const std::vector<float> &weights = weights_x[first + i];
                    const float *from = results + static_cast<int64_t>(i) * tile_values + line * tile_row;
                    float *to = band.data() + line * band_row + x.begin * channels;
                    for (const float weight_x : weights)
                        for (int64_t channel = 0; channel < channels; ++channel)
                            *to++ += weight_y * weight_x * *from++;
                }
            });
        }
        const bool last = row + 1 == layout.y.tiles.size();
        const int64_t finished = (last ? layout.height : layout.y.tiles[row + 1].origin) - y.origin;
        threads_->run(finished, [&](int64_t line, int) {
            float *values = band.data() + line * band_row;
            if (plan_->output_kind != OutputKind::identity) // weights add up to 1 only nearly
                for (int64_t i = 0; i < band_row; ++i)
                    values[i] = std::min(values[i], 1.0F);
            write_row(values, layout.width, *plan_, threshold, output, y.origin + line);
        });
        band.erase(band.begin(), band.begin() + finished * band_row);
        band.resize(band.size() + static_cast<size_t>(finished * band_row), 0.0F);
    }
    contexts.give_back(std::move(workspace));
}

void Engine::run_resized(const Layout &layout, const ImageBatch &images, const std::vector<PixelTransform> &transforms,
                         float threshold, const OutputBatch &outputs) {
    const int64_t side_y = layout.y.result, side_x = layout.x.result;
    const int64_t channels = plan_->output_channels;
    const int64_t pixel_values = side_y * side_x * images.channels, result_values = side_y * side_x * channels;
    const int batch = pass_count(images.count, layout);
    std::vector<float> pixels(static_cast<size_t>(pixel_values * batch));
    std::vector<float> results(static_cast<size_t>(result_values * batch));
    const int64_t row_values = layout.width * channels;
    std::vector<float> rows(static_cast<size_t>(row_values * threads_->threads()));

    ImageBatch small;
    small.first =
        tight_view(reinterpret_cast<const std::byte *>(pixels.data()), PixelType::float32, side_x, images.channels);
    small.image_stride = pixel_values * static_cast<int64_t>(sizeof(float));
    small.height = side_y;
    small.width = side_x;
    small.channels = images.channels;
    OutputBatch probabilities;
    probabilities.first = {reinterpret_cast<std::byte *>(results.data()), ResultType::probability,
                           side_x * channels * static_cast<int64_t>(sizeof(float))};
    probabilities.image_stride = result_values * static_cast<int64_t>(sizeof(float));

    for (int first = 0; first < images.count; first += batch) {
        small.count = std::min(batch, images.count - first);
        threads_->run(side_y * small.count, [&](int64_t task, int) {
            const int64_t image = task / side_y, row = task % side_y;
            resize_row(images[first + image], images.height, images.width, images.channels, row, side_y, side_x,
                       pixels.data() + image * pixel_values + row * side_x * images.channels);
        });
        run_abutting(layout, small, {transforms.begin() + first, transforms.begin() + first + small.count}, threshold,
                     probabilities);
        threads_->run(layout.height * small.count, [&](int64_t task, int worker) {
            const int64_t image = task / layout.height, row = task % layout.height;
            float *values = rows.data() + worker * row_values;
            const ImageView probability =
                tight_view(reinterpret_cast<const std::byte *>(results.data() + image * result_values),
                           PixelType::float32, side_x, static_cast<int>(channels));
            resize_row(probability, side_y, side_x, static_cast<int>(channels), row, layout.height, layout.width,
                       values);
            write_row(values, layout.width, *plan_, threshold, outputs[first + image], row);
        });
    }
}

Session::Session(std::shared_ptr<Engine> engine, const PassShape &shape)
    : engine_(std::move(engine)), executor_(&engine_->executor()) {
    try {
        workspace_ = make_workspace(*executor_, engine_->plan(), shape);
    } catch (const Error &error) {
        if (!engine_->fall_back(*executor_, error))
            throw;
        executor_ = &engine_->executor();
        workspace_ = make_workspace(*executor_, engine_->plan(), shape);
    }
}

void Session::run(const uf_image &image, float threshold, const uf_output &output, void *stream) {
    if (busy_.test_and_set(std::memory_order_acquire))
        throw Error(UF_ERR_BUSY, "the context is in use by another thread; make one context per thread");
    struct Release {
        std::atomic_flag &flag;
        ~Release() { flag.clear(std::memory_order_release); }
    } const release{busy_};

    const Plan &plan = engine_->plan();
    const PassShape shape = workspace_->context->shape();
    uf_run_options options = {};
    options.struct_size = sizeof options;
    options.threshold = threshold;
    const RunOptions checked = check_run_options(&options, plan);
    if (stream != nullptr && executor_->device().rfind("cuda", 0) != 0)
        throw Error(UF_ERR_INVALID_ARGUMENT, message("cuda_stream must be NULL on device ", executor_->device()));
    const ImageBatch images = check_image(image, plan);
    if (images.count > shape.count || images.height != shape.height || images.width != shape.width)
        throw Error(UF_ERR_INVALID_ARGUMENT,
                    message("image is ", images.count, " x ", images.height, " x ", images.width,
                            " (count x height x width), this context takes up to ", shape.count, " of ", shape.height,
                            " x ", shape.width));
    const OutputBatch outputs =
        check_output(output, images.count, shape.height - 2 * plan.margin, shape.width - 2 * plan.margin, plan);
    if (images.first.on_device && plan.normalisation.kind == NormalisationKind::standardise)
        throw Error(UF_ERR_UNSUPPORTED,
                    "this network standardises each image by its own pixels, which have to be in host "
                    "memory for that; pass such memory, or call uf_segment");
    try {
        run_here(images, checked.threshold, outputs, stream);
    } catch (const Error &error) {
        const bool on_host = !images.first.on_device && !outputs.first.on_device && stream == nullptr;
        if (!on_host || !engine_->fall_back(*executor_, error))
            throw;
        executor_ = &engine_->executor();
        workspace_ = make_workspace(*executor_, plan, shape);
        run_here(images, checked.threshold, outputs, stream);
    }
}

void Session::run_here(const ImageBatch &images, float threshold, const OutputBatch &outputs, void *stream) {
    if (images.first.on_device)
        executor_->check_device_memory(images.first.data, "image");
    else
        require_finite(images);
    if (outputs.first.on_device)
        executor_->check_device_memory(outputs.first.data, "output");
    for (int index = 0; index < images.count; ++index) {
        const auto slot = static_cast<size_t>(index);
        workspace_->images[slot] = images[index];
        workspace_->transforms[slot] = pixel_transform(engine_->plan(), images, index);
        workspace_->outputs[slot] = outputs[index];
    }
    workspace_->context->run(workspace_->images.data(), workspace_->transforms.data(), images.count, logit(threshold),
                             workspace_->outputs.data(), stream);
}

} // namespace uf
