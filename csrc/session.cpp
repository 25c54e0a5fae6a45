#include "session.h"

#include "error.h"
#include "message.h"
#include "tiler.h"

namespace uf {

Session::Session(std::shared_ptr<Engine> engine, const PassShape &shape)
    : engine_(std::move(engine)), backend_(engine_->backend()) {
    try {
        workspace_ = make_workspace(*backend_->executor, shape);
    } catch (const Error &error) {
        if (!engine_->fall_back(backend_, error))
            throw;
        backend_ = engine_->backend();
        workspace_ = make_workspace(*backend_->executor, shape);
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
        std::shared_ptr<const Engine::Backend> next = engine_->backend();
        workspace_ = make_workspace(*next->executor, shape);
        backend_ = std::move(next);
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
