// The C boundary: exceptions stop here and become a status and a message.
#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstring>
#include <exception>
#include <memory>
#include <new>

#include "engine.h"
#include "engine_file.h"
#include "error.h"
#include "float_mode.h"
#include "message.h"
#include "session.h"

// A closed handle is empty.
struct uf_engine {
    std::shared_ptr<uf::Engine> content;
};

struct uf_context {
    std::unique_ptr<uf::Session> content;
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
    std::transform(text, text + length, last_error, uf::printable); // a path may hold a newline
    last_error[length] = '\0';
}

template <class Body> uf_status guarded(const Body &body) noexcept {
    const uf::DefaultFloatMode mode;
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

// Bytes of each struct in its first layout, of version 0.1: the least that a caller gives.
template <class Struct> constexpr size_t first_size = sizeof(Struct);
template <> constexpr size_t first_size<uf_options> = offsetof(uf_options, thread_affinity);
template <> constexpr size_t first_size<uf_image> = offsetof(uf_image, size_bytes);
template <> constexpr size_t first_size<uf_output> = offsetof(uf_output, size_bytes);
template <> constexpr size_t first_size<uf_info> = offsetof(uf_info, tuning);

// No struct will ever be this large: whoever gives such a size has not set it.
constexpr size_t largest_struct_bytes = 4096;

template <class Struct> size_t struct_size(const Struct *argument, const char *name) {
    require(argument, name);
    const size_t size = argument->struct_size;
    if (size < first_size<Struct> || size > largest_struct_bytes)
        refuse(uf::message(name, ".struct_size is ", size, ", expected ", sizeof(Struct),
                           "; set it to sizeof and the fields that are not used to 0"));
    return size;
}

// The caller's struct in the layout of this library: zero where his header is older; a newer one may have more fields
// if they are zero.
template <class Struct> Struct taken(const Struct *argument, const char *name) {
    const size_t size = struct_size(argument, name);
    const auto *bytes = reinterpret_cast<const unsigned char *>(argument);
    if (std::any_of(bytes + std::min(size, sizeof(Struct)), bytes + size, [](unsigned char byte) { return byte != 0; }))
        throw uf::Error(UF_ERR_UNSUPPORTED, uf::message(name, " uses a field that this library (", uf_version(),
                                                        ") does not know; set it to 0, or use a newer library"));
    Struct result = {};
    std::memcpy(&result, argument, std::min(size, sizeof result));
    return result;
}

// What a handle stands for.
template <class Handle> auto &content_of(Handle *handle, const char *argument) {
    require(handle, argument);
    if (handle->content == nullptr)
        refuse(uf::message(argument, " is closed"));
    return *handle->content;
}

// Empties a handle.  The last ones stay allocated, so that a call with one of them is refused instead of undefined.
template <class Handle> void close(Handle *handle) noexcept {
    static std::array<std::atomic<Handle *>, 16> closed{};
    static std::atomic<size_t> turn{0};
    if (handle == nullptr || handle->content == nullptr)
        return;
    handle->content.reset();
    delete closed[turn.fetch_add(1) % closed.size()].exchange(handle);
}

uf::EngineOptions engine_options(const uf_options *argument) {
    uf::EngineOptions options;
    if (argument == nullptr)
        return options;
    const uf_options given = taken(argument, "options");
    const auto set = [](std::string &option, const char *value) {
        if (value != nullptr)
            option = value;
    };
    set(options.device, given.device);
    set(options.precision, given.precision);
    set(options.cpu_isa, given.cpu_isa);
    options.threads = given.threads;
    options.refuse_embedded_code = given.refuse_embedded_code != 0;
    set(options.thread_affinity, given.thread_affinity);
    options.thread_priority = given.thread_priority;
    options.keep_warm_ms = given.keep_warm_ms;
    return options;
}

uf::RunOptions run_options(const uf_run_options *argument, const uf::Plan &plan) {
    if (argument == nullptr)
        return uf::check_run_options(nullptr, plan);
    const uf_run_options given = taken(argument, "options");
    return uf::check_run_options(&given, plan);
}

// `count` images of height x width, where 0 is the default.  Refuses what one pass cannot take.
uf::PassShape pass_shape(const uf::Plan &plan, int32_t count, int32_t height, int32_t width) {
    constexpr int32_t most = 65536;
    if (count < 0 || count > most)
        refuse(uf::message("count is ", count, ", accepted are 0 (one image) to ", most));
    uf::RunOptions whole;
    whole.tiling = UF_TILING_NONE;
    const uf::PassShape shape{count != 0 ? count : 1, height != 0 ? height : plan.tile, width != 0 ? width : plan.tile};
    uf::make_layout(plan, shape.height, shape.width, whole); // refuses a size that is not legal
    return shape;
}

// `value` as far as a struct of the caller's header reaches, whose size is `size`.
template <class Struct> void give(void *to, size_t size, Struct value) {
    value.struct_size = size;
    std::memset(to, 0, size);
    std::memcpy(to, &value, std::min(size, sizeof value));
}

// `read`: gives the plan, with GPU code or without.
template <class Read> uf_engine *open_engine(const uf_options *options, const Read &read) {
    const uf::EngineOptions checked_options = engine_options(options);
    auto engine = std::make_unique<uf_engine>();
    const bool with_gpu_code = checked_options.device.rfind("cpu", 0) != 0 && !checked_options.refuse_embedded_code;
    engine->content = std::make_shared<uf::Engine>(read(with_gpu_code), checked_options);
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
        try {
            auto file = std::make_shared<uf::FileBytes>(uf::read_file(path));
            *engine =
                open_engine(options, [&](bool with_gpu_code) { return uf::consume_engine_file(file, with_gpu_code); });
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
        *engine = open_engine(options, [&](bool with_gpu_code) {
            return uf::read_engine_file(static_cast<const std::byte *>(data), size_bytes, with_gpu_code);
        });
    });
}

void uf_engine_close(uf_engine *engine) { close(engine); }

uf_status uf_engine_info(const uf_engine *engine, uf_info *info) {
    return guarded([&] {
        const uf::Engine &opened = content_of(engine, "engine");
        const size_t size = struct_size(info, "info");
        give(info, size, opened.info());
    });
}

int32_t uf_engine_healthy(const uf_engine *engine) {
    bool healthy = false;
    const uf_status status = guarded([&] {
        if (engine != nullptr && engine->content != nullptr)
            healthy = engine->content->backend()->executor->healthy();
    });
    return status == UF_OK && healthy ? 1 : 0;
}

uf_status uf_output_size(const uf_engine *engine, int32_t height, int32_t width, const uf_run_options *options,
                         int32_t *output_height, int32_t *output_width) {
    return guarded([&] {
        const uf::Plan &plan = content_of(engine, "engine").plan();
        require(output_height, "output_height");
        require(output_width, "output_width");
        const uf::Layout layout = uf::make_layout(plan, height, width, run_options(options, plan));
        *output_height = static_cast<int32_t>(layout.height);
        *output_width = static_cast<int32_t>(layout.width);
    });
}

uf_status uf_image_describe(uf_image *image, const void *data, const char *encoding, int32_t height, int32_t width,
                            int64_t row_stride_bytes) {
    return guarded([&] {
        const size_t size = struct_size(image, "image");
        give(image, size, uf::describe_image(data, encoding, height, width, row_stride_bytes));
    });
}

uf_status uf_segment(uf_engine *engine, const uf_image *image, const uf_run_options *options, uf_output *output) {
    return guarded([&] {
        uf::Engine &opened = content_of(engine, "engine");
        const uf::Plan &plan = opened.plan();
        const uf::ImageBatch images = uf::check_image(taken(image, "image"), plan);
        const uf_output results = taken(output, "output");
        const uf::RunOptions chosen = run_options(options, plan);
        const uf::Layout layout = uf::make_layout(plan, images.height, images.width, chosen);
        opened.segment(images, chosen, layout,
                       uf::check_output(results, images.count, layout.height, layout.width, plan));
    });
}

uf_status uf_context_create(uf_engine *engine, int32_t count, int32_t height, int32_t width, uf_context **context) {
    return guarded([&] {
        require(context, "context");
        *context = nullptr;
        const uf::Plan &plan = content_of(engine, "engine").plan();
        const uf::PassShape shape = pass_shape(plan, count, height, width);
        *context = new uf_context{std::make_unique<uf::Session>(engine->content, shape)};
    });
}

void uf_context_destroy(uf_context *context) { close(context); }

uf_status uf_enqueue(uf_context *context, const uf_image *image, float threshold, uf_output *output,
                     void *cuda_stream) {
    return guarded([&] {
        content_of(context, "context").run(taken(image, "image"), threshold, taken(output, "output"), cuda_stream);
    });
}

uf_status uf_engine_tune(uf_engine *engine, int32_t count, int32_t height, int32_t width, const char *path) {
    return guarded([&] {
        uf::Engine &opened = content_of(engine, "engine");
        if (path != nullptr && *path == '\0')
            refuse("path is empty; pass NULL to keep the choice in the user's cache");
        opened.tune(pass_shape(opened.plan(), count, height, width), path == nullptr ? "" : path);
    });
}

uf_status uf_engine_profile(uf_engine *engine, int32_t count, int32_t height, int32_t width, uf_op_time *ops,
                            int32_t capacity, uf_profile *profile) {
    return guarded([&] {
        const uf::Engine &opened = content_of(engine, "engine");
        const uf::Plan &plan = opened.plan();
        const size_t op_size = ops == nullptr ? 0 : struct_size(ops, "ops");
        const size_t profile_size = profile == nullptr ? 0 : struct_size(profile, "profile");
        if (ops != nullptr && (capacity < 0 || static_cast<size_t>(capacity) < plan.ops.size()))
            refuse(uf::message("capacity is ", capacity, ", this engine has ", plan.ops.size(), " ops"));
        const uf::Profile measured = opened.profile(pass_shape(plan, count, height, width));
        auto *place = reinterpret_cast<std::byte *>(ops);
        for (size_t i = 0; ops != nullptr && i < plan.ops.size(); ++i, place += op_size)
            give(place, op_size,
                 uf_op_time{op_size, plan.ops[i].name.c_str(), measured.ops[i].kernel, measured.ops[i].seconds});
        if (profile != nullptr)
            give(profile, profile_size,
                 uf_profile{profile_size, measured.pass_seconds, measured.bytes_per_second,
                            measured.operations_per_second, measured.operations_measured ? 1 : 0});
    });
}
