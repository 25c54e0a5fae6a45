// The C boundary: exceptions stop here and become a status and a message.
#include <algorithm>
#include <cstring>
#include <exception>
#include <memory>
#include <new>

#include "engine.h"
#include "engine_file.h"
#include "error.h"
#include "message.h"

struct uf_engine {
    std::shared_ptr<uf::Engine> engine;
};

struct uf_context {
    uf::Session session;
};

namespace {

// A fixed buffer, so that running out of memory can be reported.
thread_local char last_error[2048] = "";

void remember(const char *text) noexcept {
    size_t length = std::strlen(text);
    if (length >= sizeof last_error) {
        length = sizeof last_error - 1;
        while (length > 0 && (static_cast<unsigned char>(text[length]) & 0xC0U) == 0x80U)
            --length; // not inside a UTF-8 character
    }
    std::memcpy(last_error, text, length);
    last_error[length] = '\0';
}

template <class Body> uf_status guarded(const Body &body) noexcept {
    try {
        body();
        return UF_OK;
    } catch (const uf::Error &error) {
        remember(error.what());
        return error.status();
    } catch (const std::bad_alloc &) {
        remember("out of memory");
        return UF_ERR_OUT_OF_MEMORY;
    } catch (const std::exception &error) {
        remember(error.what());
        return UF_ERR_INTERNAL;
    } catch (...) {
        remember("unknown exception");
        return UF_ERR_INTERNAL;
    }
}

[[noreturn]] void refuse(const std::string &text) { throw uf::Error(UF_ERR_INVALID_ARGUMENT, text); }

void require(const void *pointer, const char *argument) {
    if (pointer == nullptr)
        refuse(uf::message(argument, " is NULL"));
}

// The caller's struct may be of a newer header, and then is larger.
template <class Struct> void require_struct(const Struct *argument, const char *name) {
    require(argument, name);
    if (argument->struct_size < sizeof(Struct))
        refuse(uf::message(name, ".struct_size is ", argument->struct_size, ", expected at least ", sizeof(Struct),
                           "; set it to sizeof and the fields that are not used to 0"));
}

uf::EngineOptions engine_options(const uf_options *given) {
    uf::EngineOptions options;
    if (given == nullptr)
        return options;
    require_struct(given, "options");
    const auto set = [](std::string &option, const char *value) {
        if (value != nullptr)
            option = value;
    };
    set(options.device, given->device);
    set(options.precision, given->precision);
    set(options.cpu_isa, given->cpu_isa);
    options.threads = given->threads;
    options.refuse_embedded_code = given->refuse_embedded_code != 0;
    return options;
}

const uf_run_options *checked(const uf_run_options *options) {
    if (options != nullptr)
        require_struct(options, "options");
    return options;
}

uf_engine *open_engine(const std::byte *data, size_t size, const uf_options *options) {
    const uf::EngineOptions checked_options = engine_options(options);
    auto engine = std::make_unique<uf_engine>();
    const bool with_gpu_code = checked_options.device.rfind("cpu", 0) != 0 && !checked_options.refuse_embedded_code;
    engine->engine = std::make_shared<uf::Engine>(uf::read_engine_file(data, size, with_gpu_code), checked_options);
    return engine.release();
}

#define UF_TEXT(x) #x
#define UF_VERSION_TEXT(major, minor, patch) UF_TEXT(major) "." UF_TEXT(minor) "." UF_TEXT(patch)

} // namespace

const char *uf_version(void) { return UF_VERSION_TEXT(UF_VERSION_MAJOR, UF_VERSION_MINOR, UF_VERSION_PATCH); }

const char *uf_last_error(void) { return last_error; }

const char *uf_status_name(uf_status status) {
    switch (status) {
    case UF_OK:
        return "UF_OK";
    case UF_ERR_INVALID_ARGUMENT:
        return "UF_ERR_INVALID_ARGUMENT";
    case UF_ERR_IO:
        return "UF_ERR_IO";
    case UF_ERR_BAD_FILE:
        return "UF_ERR_BAD_FILE";
    case UF_ERR_VERSION:
        return "UF_ERR_VERSION";
    case UF_ERR_UNSUPPORTED:
        return "UF_ERR_UNSUPPORTED";
    case UF_ERR_OUT_OF_MEMORY:
        return "UF_ERR_OUT_OF_MEMORY";
    case UF_ERR_BUSY:
        return "UF_ERR_BUSY";
    case UF_ERR_DEVICE:
        return "UF_ERR_DEVICE";
    case UF_ERR_DEVICE_LOST:
        return "UF_ERR_DEVICE_LOST";
    case UF_ERR_INTERNAL:
        return "UF_ERR_INTERNAL";
    }
    return "unknown status";
}

uf_status uf_engine_open(const char *path, const uf_options *options, uf_engine **engine) {
    return guarded([&] {
        require(engine, "engine");
        *engine = nullptr;
        require(path, "path");
        const uf::FileBytes file = uf::read_file(path);
        try {
            *engine = open_engine(file.data.get(), file.size, options);
        } catch (const uf::Error &error) {
            const bool about_file = error.status() == UF_ERR_BAD_FILE || error.status() == UF_ERR_VERSION;
            throw uf::Error(error.status(), about_file ? uf::message(path, ": ", error.what()) : error.what());
        }
    });
}

uf_status uf_engine_open_memory(const void *data, size_t size_bytes, const uf_options *options, uf_engine **engine) {
    return guarded([&] {
        require(engine, "engine");
        *engine = nullptr;
        require(data, "data");
        *engine = open_engine(static_cast<const std::byte *>(data), size_bytes, options);
    });
}

void uf_engine_close(uf_engine *engine) { delete engine; }

uf_status uf_engine_info(const uf_engine *engine, uf_info *info) {
    return guarded([&] {
        require(engine, "engine");
        require_struct(info, "info");
        const size_t size = info->struct_size;
        *info = engine->engine->info();
        info->struct_size = size;
    });
}

uf_status uf_output_size(const uf_engine *engine, int32_t height, int32_t width, const uf_run_options *options,
                         int32_t *output_height, int32_t *output_width) {
    return guarded([&] {
        require(engine, "engine");
        require(output_height, "output_height");
        require(output_width, "output_width");
        const uf::Plan &plan = engine->engine->plan();
        const uf::Layout layout = uf::make_layout(plan, height, width, uf::check_run_options(checked(options), plan));
        *output_height = static_cast<int32_t>(layout.height);
        *output_width = static_cast<int32_t>(layout.width);
    });
}

uf_status uf_segment(uf_engine *engine, const uf_image *image, const uf_run_options *options, uf_output *output) {
    return guarded([&] {
        require(engine, "engine");
        require_struct(image, "image");
        require_struct(output, "output");
        const uf::Plan &plan = engine->engine->plan();
        const uf::RunOptions run_options = uf::check_run_options(checked(options), plan);
        const uf::ImageBatch images = uf::check_image(*image, plan);
        const uf::Layout layout = uf::make_layout(plan, images.height, images.width, run_options);
        engine->engine->segment(images, run_options, layout,
                                uf::check_output(*output, images.count, layout.height, layout.width, plan));
    });
}

uf_status uf_context_create(uf_engine *engine, int32_t count, int32_t height, int32_t width, uf_context **context) {
    return guarded([&] {
        require(context, "context");
        *context = nullptr;
        require(engine, "engine");
        const uf::Plan &plan = engine->engine->plan();
        constexpr int32_t most = 65536;
        if (count < 0 || count > most)
            refuse(uf::message("count is ", count, ", accepted are 0 (one image) to ", most));
        uf::RunOptions whole;
        whole.tiling = UF_TILING_NONE;
        const uf::PassShape shape{count != 0 ? count : 1, height != 0 ? height : plan.tile,
                                  width != 0 ? width : plan.tile};
        uf::make_layout(plan, shape.height, shape.width, whole); // refuses a size that is not legal
        *context = new uf_context{{engine->engine, shape}};
    });
}

void uf_context_destroy(uf_context *context) { delete context; }

uf_status uf_enqueue(uf_context *context, const uf_image *image, float threshold, uf_output *output,
                     void *cuda_stream) {
    return guarded([&] {
        require(context, "context");
        require_struct(image, "image");
        require_struct(output, "output");
        context->session.run(*image, threshold, *output, cuda_stream);
    });
}
