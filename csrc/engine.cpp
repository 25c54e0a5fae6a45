#include "engine.h"

#include "cpu/cpu_executor.h"
#include "error.h"
#include "host_copies.h"

namespace uf {

Engine::Engine(const std::shared_ptr<Plan> &plan, const EngineOptions &options)
    : plan_(plan), options_(options),
      threads_(std::make_shared<ThreadPool>(checked_threads(options), checked_schedule(options))) {
    Choice choice = choose_executor(plan, threads_, options);
    backend_ = make_backend(std::move(choice.executor), choice.reason);
    if (options.keep_warm_ms == 0)
        return;
    const int workers = threads_->threads() - 1; // which come first in the schedule
    keep_warm_ = std::make_unique<KeepWarm>(checked_pause(options), checked_schedule(options), workers,
                                            [this](const KeepWarm::Calls &calls) {
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
    backend->contexts = std::make_unique<ContextPool>(*backend->executor);
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
        replace(lost, make_backend(make_cpu_executor(plan_, threads_, precision, options_.cpu_isa), error.what()));
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
            run_on(*used).run(layout, images, options.threshold, outputs);
            return;
        }
        const HostImages host_images(executor, images);
        const HostOutputs host_outputs(executor, *plan_, outputs, images.count, layout.height, layout.width);
        run_on(*used).run(layout, host_images.batch(), options.threshold, host_outputs.batch());
        host_outputs.write_back();
    } catch (const Error &error) {
        if (images.first.on_device || outputs.first.on_device || !fall_back(used, error))
            throw;
        const std::shared_ptr<const Backend> next = backend();
        run_on(*next).run(layout, images, options.threshold, outputs);
    }
}

TiledRun Engine::run_on(const Backend &backend) const {
    return {*plan_, *threads_, *backend.executor, *backend.contexts};
}

} // namespace uf
