#include "engine.h"

#include <sched.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstring>
#include <fstream>
#include <optional>
#include <set>

#include "cpu/cpu_executor.h"
#include "cuda/cuda_executor.h"
#include "error.h"
#include "host_copies.h"
#include "message.h"
#include "mirrored_images.h"

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

// "2,4-7" as the numbers that it names.
std::vector<int> processors_in(const std::string &list) {
    std::vector<int> processors;
    const auto refuse = [&]() -> int {
        throw Error(UF_ERR_INVALID_ARGUMENT,
                    message("options.thread_affinity is ", in_quotes(list),
                            ", expected processors as in \"2,4-7\", up to ", ThreadSchedule::most_processors - 1));
    };
    const char *next = list.data(), *const end = next + list.size();
    const auto number = [&] {
        int value = 0;
        const auto [behind, error] = std::from_chars(next, end, value);
        next = behind;
        return error == std::errc() && value >= 0 && value < ThreadSchedule::most_processors ? value : refuse();
    };
    while (true) {
        const int first = number();
        int last = first;
        if (next != end && *next == '-') {
            ++next;
            last = number();
        }
        if (last < first)
            refuse();
        for (int processor = first; processor <= last; ++processor)
            processors.push_back(processor);
        if (next == end)
            return processors;
        if (*next++ != ',')
            refuse();
    }
}

ThreadSchedule checked_schedule(const EngineOptions &options) {
    ThreadSchedule schedule;
    if (!options.thread_affinity.empty())
        schedule.processors = processors_in(options.thread_affinity);
    if (options.thread_priority < 0 || options.thread_priority > 99)
        throw Error(UF_ERR_INVALID_ARGUMENT,
                    message("options.thread_priority is ", options.thread_priority,
                            ", accepted are 1 to 99 (SCHED_FIFO) and 0 (as the thread that opens the engine)"));
    schedule.priority = static_cast<int>(options.thread_priority);
    return schedule;
}

std::chrono::milliseconds checked_pause(const EngineOptions &options) {
    constexpr int64_t longest = 60000;
    if (options.keep_warm_ms < 0 || options.keep_warm_ms > longest)
        throw Error(UF_ERR_INVALID_ARGUMENT,
                    message("options.keep_warm_ms is ", options.keep_warm_ms, ", accepted are 1 to ", longest,
                            " (milliseconds of pause) and 0 (nothing is done in pauses)"));
    return std::chrono::milliseconds(options.keep_warm_ms);
}

struct Choice {
    std::unique_ptr<Executor> executor;
    std::string reason;
};

// The one place that knows which executors there are.
Choice choose_executor(const std::shared_ptr<Plan> &plan, const std::shared_ptr<ThreadPool> &threads,
                       const EngineOptions &options) {
    const std::set<std::string> precisions = {"auto", "float32", "bf16", "fp16", "int8"};
    if (precisions.count(options.precision) == 0)
        throw Error(UF_ERR_INVALID_ARGUMENT, message("options.precision is ", in_quotes(options.precision),
                                                     ", accepted are auto, float32, bf16, fp16 and int8"));
    const bool int8 = plan->precision == "int8";
    if (int8 ? options.precision != "auto" && options.precision != "int8" : options.precision == "int8")
        throw Error(UF_ERR_UNSUPPORTED,
                    message("options.precision is ", options.precision, ", but the file was frozen for ",
                            plan->precision, "; use auto, or freeze the network with precision ", options.precision));
    if (options.device == "cpu-reference") {
        if (options.precision != "auto" && options.precision != "float32" && !int8)
            throw Error(UF_ERR_UNSUPPORTED,
                        message("device cpu-reference computes in float32, not in ", options.precision));
        return {make_reference_executor(plan), "asked for"};
    }
    if (options.device == "cuda" || options.device.rfind("cuda:", 0) == 0) {
        if (options.refuse_embedded_code)
            throw Error(UF_ERR_UNSUPPORTED, message("device ", in_quotes(options.device),
                                                    " runs GPU code of the file, which the "
                                                    "options refuse; use device cpu, or accept the code"));
        if (int8)
            throw Error(UF_ERR_UNSUPPORTED, message("device ", in_quotes(options.device),
                                                    " cannot run an int8 file, which is for the CPU; use device cpu, "
                                                    "or freeze the network with precision fp16"));
        return {make_cuda_executor(plan, options.device, options.precision), "asked for"};
    }
    if (options.device != "auto" && options.device != "cpu")
        throw Error(UF_ERR_INVALID_ARGUMENT, message("options.device is ", in_quotes(options.device),
                                                     ", accepted are auto, cpu, cpu-reference, cuda and cuda:N"));
    std::string reason = options.device == "cpu" ? "asked for" : "GPU code in the file is refused";
    if (options.device == "auto" && int8)
        reason = "an int8 file is for the CPU";
    else if (options.device == "auto" && !options.refuse_embedded_code) {
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
    return {make_cpu_executor(plan, threads, options.precision, options.cpu_isa, plan.get()), reason};
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
// copies; of a window in host memory, of the whole image in device memory.
class WindowReader {
  public:
    // All must outlive it, and it the passes.
    WindowReader(const Executor &executor, const Layout &layout, const ImageBatch &images)
        : layout_(layout), images_(images), mirror_(layout.mirror),
          bytes_(static_cast<size_t>(layout.y.side * layout.x.side * images.channels) *
                 pixel_bytes(images.first.type)) {
        const int64_t rows = seen(layout.y), columns = seen(layout.x);
        if (!images.first.on_device || (mirror_ == 0 && rows <= images.height && columns <= images.width))
            return;
        if (MirroredImages::possible(images)) {
            images_ = mirrored_.emplace(executor, images, mirror_, rows, columns).batch();
            mirror_ = 0;
        } else {
            images_ = on_host_.emplace(executor, images).batch();
        }
    }

    // Makes the window of these tiles the pass's image number `slot`.
    void read(Workspace &workspace, size_t slot, int index, const TileSpan &y, const TileSpan &x,
              const PixelTransform &transform) const {
        const int64_t top = y.origin - mirror_, left = x.origin - mirror_;
        ImageView view = images_[index];
        if (top >= 0 && left >= 0 && top + layout_.y.side <= images_.height && left + layout_.x.side <= images_.width) {
            view.data += top * view.row_stride + left * view.pixel_stride;
        } else {
            workspace.pixels.resize(bytes_ * workspace.images.size());
            std::byte *copy = workspace.pixels.data() + slot * bytes_;
            copy_mirrored(images_, index, top, left, layout_.y.side, layout_.x.side, copy);
            view = tight_view(copy, view.type, layout_.x.side, images_.channels);
        }
        workspace.images[slot] = view;
        workspace.transforms[slot] = transform;
    }

  private:
    // Pixels of the mirrored image that the tiles of an axis see; the last tile begins last.
    static int64_t seen(const TileAxis &axis) { return axis[axis.count - 1].origin + axis.side; }

    const Layout &layout_;
    ImageBatch images_;
    int64_t mirror_;     // of the layout, less what `images_` already hold
    const size_t bytes_; // of one window
    std::optional<MirroredImages> mirrored_;
    std::optional<HostImages> on_host_;
};

// Passes of one shape, two by turns where host work and computing can overlap: while one computes, the host fills the
// next and collects the one before.  One by one where the next writes over what the one before has written.
class Passes {
  public:
    Passes(const Engine::Backend &backend, const PassShape &shape, int64_t passes, bool one_by_one = false)
        : contexts_(*backend.contexts), passes_(passes) {
        const int64_t most = one_by_one ? 1 : most_lanes;
        const int64_t wanted = std::min<int64_t>({backend.executor->overlapping_passes(), passes, most});
        for (; lanes_ < wanted; ++lanes_)
            try {
                workspaces_[lanes_] = contexts_.take(shape);
            } catch (const Error &error) {
                if (lanes_ == 0 || error.status() != UF_ERR_OUT_OF_MEMORY)
                    throw;
                break; // the second only saves time
            }
    }

    // start(pass, workspace) fills the workspace and calls `begin`, collect(pass, workspace) takes the results; both in
    // the order of passes.  Where one of them throws, the contexts are not used again.
    template <class Start, class Collect> void run(const Start &start, const Collect &collect) {
        const auto of = [&](int64_t pass) -> Workspace & { return *workspaces_[pass % lanes_]; };
        for (int64_t pass = 0; pass < passes_ + lanes_ - 1; ++pass) {
            if (pass < passes_)
                start(pass, of(pass));
            if (const int64_t before = pass + 1 - lanes_; before >= 0) {
                if (lanes_ > 1)
                    of(before).context->finish_pass();
                collect(before, of(before));
            }
        }
        for (int64_t lane = 0; lane < lanes_; ++lane)
            contexts_.give_back(std::move(workspaces_[lane]));
    }

    // The first `count` images of the workspace.
    void begin(Workspace &workspace, int64_t count, float logit_threshold) const {
        Context &context = *workspace.context;
        if (lanes_ > 1)
            context.start_pass(workspace.images.data(), workspace.transforms.data(), static_cast<int>(count),
                               logit_threshold, workspace.outputs.data());
        else
            context.run(workspace.images.data(), workspace.transforms.data(), static_cast<int>(count), logit_threshold,
                        workspace.outputs.data(), nullptr);
    }

    // For what lasts as long as all of the passes; a pass may use the memory of its own workspace otherwise.
    Workspace &first() { return *workspaces_[0]; }

  private:
    static constexpr int most_lanes = 2;
    ContextPool &contexts_;
    const int64_t passes_;
    std::array<std::unique_ptr<Workspace>, most_lanes> workspaces_;
    int64_t lanes_ = 0;
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

Engine::Engine(std::shared_ptr<Plan> plan, const EngineOptions &options)
    : plan_(std::move(plan)), options_(options),
      threads_(std::make_shared<ThreadPool>(checked_threads(options), checked_schedule(options))) {
    Choice choice = choose_executor(plan_, threads_, options);
    backend_ = make_backend(std::move(choice.executor), choice.reason);
    if (options.keep_warm_ms == 0)
        return;
    keep_warm_ = std::make_unique<KeepWarm>(checked_pause(options), [this](const KeepWarm::Calls &calls) {
        const std::shared_ptr<const Backend> now = backend();
        std::unique_ptr<Workspace> workspace = now->contexts->take_latest();
        if (workspace == nullptr)
            return;
        workspace->context->warm(calls);
        now->contexts->give_back(std::move(workspace));
    });
}

std::shared_ptr<const Engine::Backend> Engine::backend() const {
    const std::lock_guard<std::mutex> lock(brief_mutex());
    return backend_;
}

std::shared_ptr<const Engine::Backend> Engine::make_backend(std::unique_ptr<Executor> executor,
                                                            const std::string &reason) {
    const auto backend = std::make_shared<Backend>();
    descriptions_.push_back({executor->device(), reason, executor->precision(), executor->isa(), executor->tuning(),
                             executor->tuning_file()});
    backend->executor = std::move(executor);
    backend->description = &descriptions_.back();
    backend->contexts = std::make_unique<ContextPool>(*backend->executor, *plan_);
    return backend;
}

void Engine::replace(const std::shared_ptr<const Backend> &old, std::shared_ptr<const Backend> next) {
    const std::lock_guard<std::mutex> lock(brief_mutex());
    if (backend_ == old)
        backend_.swap(next); // the old one is given up after the lock
}

bool Engine::fall_back(const std::shared_ptr<const Backend> &lost, const Error &error) {
    if (error.status() != UF_ERR_DEVICE_LOST || options_.device != "auto")
        return false;
    const std::lock_guard<std::mutex> lock(change_mutex_);
    if (backend() == lost) {
        const std::string precision = options_.precision == "fp16" ? "auto" : options_.precision;
        replace(lost, make_backend(make_cpu_executor(plan_, threads_, precision, options_.cpu_isa, plan_.get()),
                                   error.what()));
    }
    return true;
}

void Engine::tune(const PassShape &shape, const std::string &path) {
    const std::lock_guard<std::mutex> lock(change_mutex_);
    const std::shared_ptr<const Backend> old = backend();
    std::string not_kept;
    std::unique_ptr<Executor> tuned = old->executor->tuned(shape, path, not_kept);
    replace(old, make_backend(std::move(tuned), old->description->reason));
    if (!not_kept.empty())
        throw Error(UF_ERR_IO, "the engine is tuned, but only until it is closed: " + not_kept);
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
    const Description &now = *backend()->description;
    info.device = now.device.c_str();
    info.device_reason = now.reason.c_str();
    info.precision = now.precision.c_str();
    info.cpu_isa = now.isa.c_str();
    info.tuning = now.tuning.c_str();
    info.tuning_file = now.tuning_file.c_str();
    return info;
}

void Engine::segment(const ImageBatch &images, const RunOptions &options, const Layout &layout,
                     const OutputBatch &outputs) {
    const KeepWarm::Call call(keep_warm_.get());
    const std::shared_ptr<const Backend> used = backend();
    const Executor &executor = *used->executor;
    if (images.first.on_device)
        executor.check_device_memory(images.first.data, "image");
    if (outputs.first.on_device)
        executor.check_device_memory(outputs.first.data, "output");
    try {
        // Statistics, resizing and blending are the host's; for all else, pixels in device memory stay there.
        if (layout.kind == Layout::Kind::abutting && plan_->normalisation.kind == NormalisationKind::fixed) {
            segment_here(*used, images, options, layout, outputs);
            return;
        }
        const HostImages host_images(executor, images);
        const HostOutputs host_outputs(executor, *plan_, outputs, images.count, layout.height, layout.width);
        segment_here(*used, host_images.batch(), options, layout, host_outputs.batch());
        host_outputs.write_back();
    } catch (const Error &error) {
        if (images.first.on_device || outputs.first.on_device || !fall_back(used, error))
            throw;
        segment_here(*backend(), images, options, layout, outputs);
    }
}

void Engine::segment_here(const Backend &backend, const ImageBatch &images, const RunOptions &options,
                          const Layout &layout, const OutputBatch &outputs) {
    if (!images.first.on_device)
        require_finite(images);
    switch (layout.kind) {
    case Layout::Kind::abutting:
        run_abutting(backend, layout, images, options.threshold, outputs);
        break;
    case Layout::Kind::blended:
        for (int index = 0; index < images.count; ++index)
            run_blended(backend, layout, images, index, options.threshold, outputs[index]);
        break;
    case Layout::Kind::resized:
        run_resized(backend, layout, images, options.threshold, outputs);
        break;
    }
}

void Engine::run_abutting(const Backend &backend, const Layout &layout, const ImageBatch &images, float threshold,
                          const OutputBatch &outputs) {
    const int64_t columns = layout.x.count, tiles = columns * layout.y.count;
    const int64_t items = tiles * images.count;
    // In device memory each tile writes what it has from its own corner on.  The last one comes first, so that those
    // above and left of it, whose pixels there are right, write over what is wrong at its upper and left side.
    const bool on_device = outputs.first.on_device, painted = on_device && tiles > 1;
    const PassShape shape = pass_shape(painted ? 1 : items, layout);
    const int64_t count = shape.count, passes = (items + count - 1) / count;
    const WindowReader windows(*backend.executor, layout, images);
    Passes lanes(backend, shape, passes, painted);

    // In host memory a tile that gives all of its pixels writes to the caller's memory, any other to staging.
    const auto all_used = [](const TileAxis &axis, const TileSpan &tile) {
        return tile.begin == tile.origin && tile.end == tile.origin + axis.core;
    };
    const auto bytes_per_pixel = static_cast<int64_t>(result_bytes(outputs.first.type, *plan_));
    const int64_t staging_row = layout.x.core * bytes_per_pixel, staging = layout.y.core * staging_row;

    struct Place {
        int image;
        TileSpan y, x;
        bool in_place;
    };
    const auto place = [&](int64_t item) -> Place {
        if (painted)
            item = items - 1 - item;
        const TileSpan y = layout.y[item % tiles / columns], x = layout.x[item % columns];
        return {static_cast<int>(item / tiles), y, x, on_device || (all_used(layout.y, y) && all_used(layout.x, x))};
    };
    const auto target = [&](const Place &at) {
        OutputView view = outputs[at.image];
        const int64_t top = on_device ? at.y.origin : at.y.begin, left = on_device ? at.x.origin : at.x.begin;
        view.data += top * view.row_stride + left * bytes_per_pixel;
        if (on_device) {
            view.rows = at.y.end - top;
            view.columns = at.x.end - left;
        }
        return view;
    };
    const auto in_pass = [&](int64_t pass) { return std::min(count, items - pass * count); };

    int latest_image = -1; // whose tiles follow each other
    PixelTransform transform;
    const auto start = [&](int64_t pass, Workspace &workspace) {
        for (int64_t i = 0; i < in_pass(pass); ++i) {
            const auto slot = static_cast<size_t>(i);
            const Place at = place(pass * count + i);
            if (at.image != latest_image)
                transform = pixel_transform(*plan_, images, latest_image = at.image);
            windows.read(workspace, slot, at.image, at.y, at.x, transform);
            workspace.outputs[slot] =
                at.in_place ? target(at)
                            : OutputView{workspace.staging(static_cast<size_t>(staging * count)) + i * staging,
                                         outputs.first.type, staging_row};
        }
        lanes.begin(workspace, in_pass(pass), logit(threshold));
    };
    const auto collect = [&](int64_t pass, Workspace &workspace) {
        for (int64_t i = 0; i < in_pass(pass); ++i) {
            const Place at = place(pass * count + i);
            if (at.in_place)
                continue;
            const OutputView to = target(at);
            const std::byte *from = workspace.outputs[static_cast<size_t>(i)].data +
                                    (at.y.begin - at.y.origin) * staging_row +
                                    (at.x.begin - at.x.origin) * bytes_per_pixel;
            for (int64_t row = 0; row < at.y.end - at.y.begin; ++row)
                std::memcpy(to.data + row * to.row_stride, from + row * staging_row,
                            static_cast<size_t>((at.x.end - at.x.begin) * bytes_per_pixel));
        }
    };
    lanes.run(start, collect);
}

void Engine::run_blended(const Backend &backend, const Layout &layout, const ImageBatch &images, int index,
                         float threshold, const OutputView &output) {
    const TileAxis &rows = layout.y, &columns = layout.x;
    const PassShape shape = pass_shape(columns.count, layout);
    const int64_t count = shape.count, passes_per_row = (columns.count + count - 1) / count;
    const WindowReader windows(*backend.executor, layout, images);
    Passes lanes(backend, shape, rows.count * passes_per_row);
    const PixelTransform transform = pixel_transform(*plan_, images, index);
    const int64_t channels = plan_->output_channels;
    const int64_t tile_row = columns.core * channels, tile_values = rows.core * tile_row;
    const int64_t tile_bytes = tile_values * static_cast<int64_t>(sizeof(float));

    // The weights of rows and columns, then the sums of one row of tiles.
    const int64_t band_row = layout.width * channels, band_rows = std::min(rows.core, layout.height);
    const int64_t weights = rows.count * rows.core + columns.count * columns.core;
    float *const weights_y = lanes.first().scratch(static_cast<size_t>(weights + band_rows * band_row));
    float *const weights_x = weights_y + rows.count * rows.core, *const band = weights_y + weights;
    blend_weights(rows, layout.overlap, weights_y);
    blend_weights(columns, layout.overlap, weights_x);
    std::fill_n(band, band_rows * band_row, 0.0F);

    struct Span {
        int64_t row, first, count; // tiles [first, first + count) of that row
    };
    const auto span = [&](int64_t pass) -> Span {
        const int64_t first = pass % passes_per_row * count;
        return {pass / passes_per_row, first, std::min(count, columns.count - first)};
    };
    const auto start = [&](int64_t pass, Workspace &workspace) {
        const Span tiles = span(pass);
        std::byte *const results = workspace.staging(static_cast<size_t>(tile_bytes * count));
        for (int64_t i = 0; i < tiles.count; ++i) {
            const auto slot = static_cast<size_t>(i);
            windows.read(workspace, slot, index, rows[tiles.row], columns[tiles.first + i], transform);
            workspace.outputs[slot] = {results + i * tile_bytes, ResultType::probability,
                                       tile_row * static_cast<int64_t>(sizeof(float))};
        }
        lanes.begin(workspace, tiles.count, 0.0F);
    };

    // What the next row of tiles does not add to is written out, the rest moves up.
    const auto finish_row = [&](int64_t row) {
        const int64_t origin = rows[row].origin;
        const int64_t finished = (row + 1 == rows.count ? layout.height : rows[row + 1].origin) - origin;
        threads_->run(finished, [&](int64_t line, int) {
            float *values = band + line * band_row;
            if (plan_->output_kind != OutputKind::identity) // weights add up to 1 only nearly
                for (int64_t i = 0; i < band_row; ++i)
                    values[i] = std::min(values[i], 1.0F);
            write_row(values, layout.width, *plan_, threshold, output, origin + line);
        });
        std::fill(std::copy(band + finished * band_row, band + band_rows * band_row, band), band + band_rows * band_row,
                  0.0F);
    };
    const auto collect = [&](int64_t pass, const Workspace &workspace) {
        const Span tiles = span(pass);
        const TileSpan y = rows[tiles.row];
        threads_->run(y.end - y.begin, [&](int64_t line, int) {
            const float weight_y = weights_y[tiles.row * rows.core + line];
            for (int64_t i = 0; i < tiles.count; ++i) {
                const int64_t column = tiles.first + i;
                const TileSpan x = columns[column];
                const float *from =
                    reinterpret_cast<const float *>(workspace.outputs[static_cast<size_t>(i)].data) + line * tile_row;
                const float *const weight_x = weights_x + column * columns.core;
                float *to = band + line * band_row + x.begin * channels;
                for (int64_t pixel = 0; pixel < x.end - x.begin; ++pixel)
                    for (int64_t channel = 0; channel < channels; ++channel)
                        *to++ += weight_y * weight_x[pixel] * *from++;
            }
        });
        if (tiles.first + tiles.count == columns.count)
            finish_row(tiles.row);
    };
    lanes.run(start, collect);
}

void Engine::run_resized(const Backend &backend, const Layout &layout, const ImageBatch &images, float threshold,
                         const OutputBatch &outputs) {
    const int64_t side_y = layout.y.result, side_x = layout.x.result;
    const int channels = plan_->output_channels;
    const int64_t pixel_values = side_y * side_x * images.channels, result_row = side_x * channels;
    const int64_t image_bytes = side_y * result_row * static_cast<int64_t>(sizeof(float));
    const int64_t row_values = layout.width * channels;
    const PassShape shape = pass_shape(images.count, layout);
    const int64_t count = shape.count, passes = (images.count + count - 1) / count;
    Passes lanes(backend, shape, passes);
    const auto in_pass = [&](int64_t pass) { return std::min(count, images.count - pass * count); };

    // The small images of a pass, then one row of a result for each thread.
    const auto pixels_of = [&](Workspace &workspace) {
        return workspace.scratch(static_cast<size_t>(pixel_values * count + row_values * threads_->threads()));
    };
    const auto start = [&](int64_t pass, Workspace &workspace) {
        float *const pixels = pixels_of(workspace);
        threads_->run(side_y * in_pass(pass), [&](int64_t task, int) {
            const int64_t image = task / side_y, row = task % side_y;
            resize_row(images[pass * count + image], images.height, images.width, images.channels, row, side_y, side_x,
                       pixels + image * pixel_values + row * side_x * images.channels);
        });
        ImageBatch small;
        small.first =
            tight_view(reinterpret_cast<const std::byte *>(pixels), PixelType::float32, side_x, images.channels);
        small.image_stride = pixel_values * static_cast<int64_t>(sizeof(float));
        small.height = side_y;
        small.width = side_x;
        small.channels = images.channels;
        const WindowReader windows(*backend.executor, layout, small);
        std::byte *const results = workspace.staging(static_cast<size_t>(image_bytes * count));
        for (int64_t i = 0; i < in_pass(pass); ++i) {
            const auto slot = static_cast<size_t>(i);
            const int index = static_cast<int>(i);
            windows.read(workspace, slot, index, layout.y[0], layout.x[0],
                         pixel_transform(*plan_, images, static_cast<int>(pass * count) + index));
            workspace.outputs[slot] = {results + i * image_bytes, ResultType::probability,
                                       result_row * static_cast<int64_t>(sizeof(float))};
        }
        lanes.begin(workspace, in_pass(pass), 0.0F);
    };
    const auto collect = [&](int64_t pass, Workspace &workspace) {
        float *const rows = pixels_of(workspace) + pixel_values * count;
        threads_->run(layout.height * in_pass(pass), [&](int64_t task, int worker) {
            const int64_t image = task / layout.height, row = task % layout.height;
            float *const values = rows + worker * row_values;
            const ImageView probability =
                tight_view(workspace.outputs[static_cast<size_t>(image)].data, PixelType::float32, side_x, channels);
            resize_row(probability, side_y, side_x, channels, row, layout.height, layout.width, values);
            write_row(values, layout.width, *plan_, threshold, outputs[pass * count + image], row);
        });
    };
    lanes.run(start, collect);
}

Session::Session(std::shared_ptr<Engine> engine, const PassShape &shape)
    : engine_(std::move(engine)), backend_(engine_->backend()) {
    try {
        workspace_ = make_workspace(*backend_->executor, engine_->plan(), shape);
    } catch (const Error &error) {
        if (!engine_->fall_back(backend_, error))
            throw;
        backend_ = engine_->backend();
        workspace_ = make_workspace(*backend_->executor, engine_->plan(), shape);
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
    if (stream != nullptr && backend_->executor->device().rfind("cuda", 0) != 0)
        throw Error(UF_ERR_INVALID_ARGUMENT,
                    message("cuda_stream must be NULL on device ", backend_->executor->device()));
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
        if (!on_host || !engine_->fall_back(backend_, error))
            throw;
        workspace_.reset();
        backend_ = engine_->backend();
        workspace_ = make_workspace(*backend_->executor, plan, shape);
        run_here(images, checked.threshold, outputs, stream);
    }
}

void Session::run_here(const ImageBatch &images, float threshold, const OutputBatch &outputs, void *stream) {
    if (images.first.on_device)
        backend_->executor->check_device_memory(images.first.data, "image");
    else
        require_finite(images);
    if (outputs.first.on_device)
        backend_->executor->check_device_memory(outputs.first.data, "output");
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
