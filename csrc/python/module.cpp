// unet_fast._native: the C API as a Python class.  Thin on purpose: unet_fast/engine.py checks the arguments, this file
// hands pointers and strides over, releases the GIL and turns a status into an exception.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "cuda_arrays.h"
#include "errors.h"
#include "tiler.h"
#include "unet_fast.h"

namespace uf::python {

namespace {

// A strided array: a NumPy array, or the tuple (address, dtype, shape, strides in bytes) for one in GPU memory.
struct Pixels {
    explicit Pixels(const py::object &array) {
        if (py::isinstance<py::array>(array)) {
            const auto host = py::reinterpret_borrow<py::array>(array);
            data = const_cast<void *>(host.data());
            dtype = dtype_named(py::str(host.dtype()));
            shape.assign(host.shape(), host.shape() + host.ndim());
            strides.assign(host.strides(), host.strides() + host.ndim());
            writeable = host.writeable();
        } else {
            uintptr_t address = 0;
            std::string name;
            std::tie(address, name, shape, strides) = array.cast<std::tuple<uintptr_t, std::string, Sizes, Sizes>>();
            data = reinterpret_cast<void *>(address);
            dtype = dtype_named(name);
            memory = UF_MEMORY_CUDA;
        }
    }

    int32_t extent(size_t axis) const {
        if (shape[axis] > std::numeric_limits<int32_t>::max()) {
            throw py::value_error("an axis of " + std::to_string(shape[axis]) +
                                  " elements is too long (2147483647 at most)");
        }
        return static_cast<int32_t>(shape[axis]);
    }

    // In the C API a stride of 0 means "default", which is right for an axis of one element whatever stands there.
    // engine.py lets no other stride of 0 (a broadcast array) through.
    int64_t stride(size_t axis) const { return shape[axis] > 1 ? strides[axis] : 0; }

    using Sizes = std::vector<py::ssize_t>;
    void *data = nullptr;
    int32_t dtype = 0, memory = UF_MEMORY_HOST;
    Sizes shape, strides;
    bool writeable = true;

  private:
    static int32_t dtype_named(const std::string &name) {
        if (name == "uint8") {
            return UF_UINT8;
        }
        if (name == "uint16") {
            return UF_UINT16;
        }
        if (name == "float32") {
            return UF_FLOAT32;
        }
        throw py::type_error("arrays must be uint8, uint16 or float32");
    }
};

// (N, H, W, C)
uf_image image_of(const Pixels &pixels, float max_value) {
    if (pixels.shape.size() != 4) {
        throw py::value_error("image must be (N, H, W, C)");
    }
    uf_image image = {};
    image.struct_size = sizeof image;
    image.data = pixels.data;
    image.dtype = pixels.dtype;
    image.memory = pixels.memory;
    image.count = pixels.extent(0);
    image.height = pixels.extent(1);
    image.width = pixels.extent(2);
    image.channels = pixels.extent(3);
    image.image_stride_bytes = pixels.stride(0);
    image.row_stride_bytes = pixels.stride(1);
    image.pixel_stride_bytes = pixels.stride(2);
    image.channel_stride_bytes = pixels.stride(3);
    image.max_value = max_value;
    return image;
}

// (N, h, w) uint8 or (N, h, w, K) float32 with contiguous rows.
uf_output output_in(const Pixels &pixels) {
    if (pixels.shape.size() < 3 || !pixels.writeable) {
        throw py::value_error("output must be a writeable (N, h, w[, K])");
    }
    uf_output output = {};
    output.struct_size = sizeof output;
    output.data = pixels.data;
    output.dtype = pixels.dtype;
    output.memory = pixels.memory;
    output.image_stride_bytes = pixels.stride(0);
    output.row_stride_bytes = pixels.stride(1);
    return output;
}

class Engine {
  public:
    Engine(const py::object &path, const py::object &data, const std::string &device, const std::string &precision,
           const std::string &cpu_isa, int32_t threads, bool refuse_embedded_code, int64_t keep_warm_ms) {
        uf_options options = {};
        options.struct_size = sizeof options;
        options.device = device.c_str();
        options.precision = precision.c_str();
        options.cpu_isa = cpu_isa.c_str();
        options.threads = threads;
        options.refuse_embedded_code = refuse_embedded_code;
        options.keep_warm_ms = keep_warm_ms;
        uf_engine *engine = nullptr;
        if (!path.is_none()) {
            const std::string name = py::cast<std::string>(path);
            checked([&] { return uf_engine_open(name.c_str(), &options, &engine); });
        } else {
            const std::string_view bytes = py::cast<std::string_view>(data);
            checked([&] { return uf_engine_open_memory(bytes.data(), bytes.size(), &options, &engine); });
        }
        engine_.reset(engine);
    }

    py::dict info() const {
        uf_info info = {};
        info.struct_size = sizeof info;
        checked([&] { return uf_engine_info(engine_.get(), &info); });
        static const char *const outputs[] = {"sigmoid", "softmax", "identity"};
        py::dict result;
        result["name"] = info.name;
        result["device"] = info.device;
        result["device_reason"] = info.device_reason;
        result["precision"] = info.precision;
        result["cpu_isa"] = info.cpu_isa;
        result["threads"] = info.threads;
        result["channels"] = info.channels;
        result["classes"] = info.output_channels;
        result["output"] = outputs[info.output_kind];
        result["threshold"] = info.threshold;
        result["tile"] = info.tile;
        result["multiple"] = info.multiple;
        result["remainder"] = info.remainder;
        result["minimum"] = info.minimum;
        result["margin"] = info.margin;
        result["halo"] = info.halo < 0 ? py::object(py::none()) : py::int_(info.halo);
        result["ops"] = info.op_count;
        result["tuning"] = info.tuning;
        result["tuning_file"] = info.tuning_file;
        return result;
    }

    // What changes where a GPU is lost, without the rest of `info`.
    std::string device() const {
        uf_info info = {};
        info.struct_size = sizeof info;
        checked([&] { return uf_engine_info(engine_.get(), &info); });
        return info.device;
    }

    bool healthy() const { return uf_engine_healthy(engine_.get()) != 0; }

    void tune(int32_t count, int32_t height, int32_t width, const py::object &path) {
        const std::string name = path.is_none() ? "" : py::cast<std::string>(path);
        checked(
            [&] { return uf_engine_tune(engine_.get(), count, height, width, name.empty() ? nullptr : name.c_str()); });
    }

    // ((name, kernel, seconds) of each op, {"pass_seconds": ..., ...})
    py::tuple profile(int32_t count, int32_t height, int32_t width) const {
        uf_info info = {};
        info.struct_size = sizeof info;
        checked([&] { return uf_engine_info(engine_.get(), &info); });
        std::vector<uf_op_time> times(static_cast<size_t>(info.op_count), uf_op_time{sizeof(uf_op_time), "", "", 0});
        uf_profile profile = {};
        profile.struct_size = sizeof profile;
        checked([&] {
            return uf_engine_profile(engine_.get(), count, height, width, times.data(), info.op_count, &profile);
        });
        py::list ops;
        for (const uf_op_time &time : times) {
            ops.append(py::make_tuple(time.name, time.kernel, time.seconds));
        }
        py::dict whole;
        whole["pass_seconds"] = profile.pass_seconds;
        whole["bytes_per_second"] = profile.bytes_per_second;
        whole["operations_per_second"] = profile.operations_per_second;
        whole["operations_measured"] = profile.operations_measured != 0;
        return py::make_tuple(ops, whole);
    }

    py::tuple output_size(int32_t height, int32_t width, int32_t tiling, int32_t tile, int32_t overlap) const {
        const uf_run_options options = {sizeof options, tiling, tile, overlap, 0};
        int32_t output_height = 0;
        int32_t output_width = 0;
        checked([&] { return uf_output_size(engine_.get(), height, width, &options, &output_height, &output_width); });
        return py::make_tuple(output_height, output_width);
    }

    // For rows and for columns, what UF_TILING_EXACT does with an image of that size: (side of a tile in pixels of the
    // image, (origin, begin, end) of each tile), as in tiler.h.
    py::tuple exact_tiles(int64_t height, int64_t width, int32_t tile) const {
        uf_info info = {};
        info.struct_size = sizeof info;
        checked([&] { return uf_engine_info(engine_.get(), &info); });
        Plan plan; // its sizes are all that the tiler looks at
        plan.multiple = info.multiple;
        plan.remainder = info.remainder;
        plan.minimum = info.minimum;
        plan.margin = info.margin;
        plan.halo = info.halo;
        const uf_run_options options = {sizeof options, UF_TILING_EXACT, tile, 0, 0};
        Layout layout;
        translated([&] { layout = make_layout(plan, height, width, check_run_options(&options, plan)); });
        const auto described = [](const TileAxis &axis) {
            py::list spans;
            for (int64_t number = 0; number < axis.count; ++number) {
                const TileSpan span = axis[number];
                spans.append(py::make_tuple(span.origin, span.begin, span.end));
            }
            return py::make_tuple(axis.side, spans);
        };
        return py::make_tuple(described(layout.y), described(layout.x));
    }

    // Arrays as in `image_of` and `output_in`.
    void segment(const py::object &image, const py::object &output, float max_value, int32_t tiling, int32_t tile,
                 int32_t overlap, float threshold) {
        const uf_image source = image_of(Pixels(image), max_value);
        uf_output result = output_in(Pixels(output));
        const uf_run_options options = {sizeof options, tiling, tile, overlap, threshold};
        checked([&] { return uf_segment(engine_.get(), &source, &options, &result); });
    }

    uf_engine *get() const { return engine_.get(); }
    void close() { engine_.reset(); }

  private:
    struct Close {
        void operator()(uf_engine *engine) const { uf_engine_close(engine); }
    };
    std::unique_ptr<uf_engine, Close> engine_;
};

// Memory of one pass; may outlive its engine.
class Context {
  public:
    Context(const Engine &engine, int32_t count, int32_t height, int32_t width) {
        uf_context *context = nullptr;
        checked([&] { return uf_context_create(engine.get(), count, height, width, &context); });
        context_.reset(context);
    }
    void enqueue(const py::object &image, const py::object &output, float max_value, float threshold,
                 uintptr_t stream) {
        const uf_image source = image_of(Pixels(image), max_value);
        uf_output result = output_in(Pixels(output));
        checked(
            [&] { return uf_enqueue(context_.get(), &source, threshold, &result, reinterpret_cast<void *>(stream)); });
    }
    // Waits for the last pass.
    void close() { context_.reset(); }

  private:
    struct Destroy {
        void operator()(uf_context *context) const { uf_context_destroy(context); }
    };
    std::unique_ptr<uf_context, Destroy> context_;
};

} // namespace

} // namespace uf::python

PYBIND11_MODULE(_native, module) {
    using namespace uf::python;
    module.doc() = "The C API of unet_fast as a Python class; use unet_fast.Engine.";
    module.def("version", &uf_version);
    py::class_<Engine>(module, "Engine", closed_without_gil<Engine>())
        .def(py::init<const py::object &, const py::object &, const std::string &, const std::string &,
                      const std::string &, int32_t, bool, int64_t>(),
             py::kw_only(), py::arg("path"), py::arg("data"), py::arg("device"), py::arg("precision"),
             py::arg("cpu_isa"), py::arg("threads"), py::arg("refuse_embedded_code"), py::arg("keep_warm_ms"))
        .def("info", &Engine::info)
        .def("device", &Engine::device)
        .def("healthy", &Engine::healthy)
        .def("tune", &Engine::tune, py::kw_only(), py::arg("count"), py::arg("height"), py::arg("width"),
             py::arg("path"))
        .def("profile", &Engine::profile, py::kw_only(), py::arg("count"), py::arg("height"), py::arg("width"))
        .def("output_size", &Engine::output_size, py::arg("height"), py::arg("width"), py::arg("tiling"),
             py::arg("tile"), py::arg("overlap"))
        .def("exact_tiles", &Engine::exact_tiles, py::arg("height"), py::arg("width"), py::arg("tile"))
        .def("segment", &Engine::segment, py::arg("image"), py::arg("output"), py::kw_only(), py::arg("max_value"),
             py::arg("tiling"), py::arg("tile"), py::arg("overlap"), py::arg("threshold"));
    py::class_<Context>(module, "Context", closed_without_gil<Context>())
        .def(py::init<const Engine &, int32_t, int32_t, int32_t>(), py::arg("engine"), py::kw_only(), py::arg("count"),
             py::arg("height"), py::arg("width"))
        .def("enqueue", &Context::enqueue, py::arg("image"), py::arg("output"), py::kw_only(), py::arg("max_value"),
             py::arg("threshold"), py::arg("stream"));
    bind_cuda_arrays(module);
}
