// unet_fast._native: the C API as a Python class.  Thin on purpose: unet_fast/engine.py checks the arguments, this file
// hands pointers and strides over, releases the GIL and turns a status into an exception.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <string_view>

#include "unet_fast.h"

namespace py = pybind11;

namespace {

py::object exception_type(uf_status status) {
    const auto builtin = [](PyObject *type) { return py::reinterpret_borrow<py::object>(type); };
    const auto own = [](const char *name) -> py::object { return py::module_::import("unet_fast.errors").attr(name); };
    switch (status) {
    case UF_ERR_INVALID_ARGUMENT:
        return builtin(PyExc_ValueError);
    case UF_ERR_IO:
        return builtin(PyExc_OSError);
    case UF_ERR_OUT_OF_MEMORY:
        return builtin(PyExc_MemoryError);
    case UF_ERR_BAD_FILE:
    case UF_ERR_VERSION:
        return own("EngineFileError");
    case UF_ERR_UNSUPPORTED:
        return own("UnsupportedError");
    case UF_ERR_DEVICE:
    case UF_ERR_DEVICE_LOST:
        return own("DeviceError");
    default:
        return builtin(PyExc_RuntimeError);
    }
}

// Runs `call` without the GIL; raises what it reports.  The message is read on the thread that failed.
template <typename Call> void checked(const Call &call) {
    uf_status status;
    std::string message;
    {
        py::gil_scoped_release unlocked;
        status = call();
        if (status != UF_OK) {
            message = uf_last_error();
        }
    }
    if (status != UF_OK) {
        PyErr_SetString(exception_type(status).ptr(), message.c_str());
        throw py::error_already_set();
    }
}

int32_t dtype_of(const py::array &array) {
    const char kind = array.dtype().kind();
    const py::ssize_t size = array.itemsize();
    if (kind == 'u' && size == 1) {
        return UF_UINT8;
    }
    if (kind == 'u' && size == 2) {
        return UF_UINT16;
    }
    if (kind == 'f' && size == 4) {
        return UF_FLOAT32;
    }
    throw py::type_error("arrays must be uint8, uint16 or float32");
}

int32_t extent(const py::array &array, int axis) {
    const py::ssize_t size = array.shape(axis);
    if (size > std::numeric_limits<int32_t>::max()) {
        throw py::value_error("an axis of " + std::to_string(size) + " elements is too long (2147483647 at most)");
    }
    return static_cast<int32_t>(size);
}

// In the C API a stride of 0 means "default", which is right for an axis of one element whatever NumPy says there.
// engine.py lets no other stride of 0 (a broadcast array) through.
int64_t stride(const py::array &array, int axis) { return array.shape(axis) > 1 ? array.strides(axis) : 0; }

class Engine {
  public:
    Engine(const py::object &path, const py::object &data, const std::string &device, const std::string &precision,
           const std::string &cpu_isa, int32_t threads, bool refuse_embedded_code) {
        uf_options options = {};
        options.struct_size = sizeof options;
        options.device = device.c_str();
        options.precision = precision.c_str();
        options.cpu_isa = cpu_isa.c_str();
        options.threads = threads;
        options.refuse_embedded_code = refuse_embedded_code;
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
        return result;
    }

    py::tuple output_size(int32_t height, int32_t width, int32_t tiling, int32_t tile, int32_t overlap) const {
        const uf_run_options options = {sizeof options, tiling, tile, overlap, 0};
        int32_t output_height = 0;
        int32_t output_width = 0;
        checked([&] { return uf_output_size(engine_.get(), height, width, &options, &output_height, &output_width); });
        return py::make_tuple(output_height, output_width);
    }

    // image (N, H, W, C); output (N, h, w) uint8 or (N, h, w, K) float32 with contiguous rows.
    void segment(const py::array &image, const py::array &output, float max_value, int32_t tiling, int32_t tile,
                 int32_t overlap, float threshold) {
        if (image.ndim() != 4 || output.ndim() < 3 || !output.writeable()) {
            throw py::value_error("image must be (N, H, W, C) and output a writeable (N, h, w[, K])");
        }
        uf_image source = {};
        source.struct_size = sizeof source;
        source.data = image.data();
        source.dtype = dtype_of(image);
        source.count = extent(image, 0);
        source.height = extent(image, 1);
        source.width = extent(image, 2);
        source.channels = extent(image, 3);
        source.image_stride_bytes = stride(image, 0);
        source.row_stride_bytes = stride(image, 1);
        source.pixel_stride_bytes = stride(image, 2);
        source.channel_stride_bytes = stride(image, 3);
        source.max_value = max_value;
        uf_output result = {};
        result.struct_size = sizeof result;
        result.data = const_cast<void *>(output.data()); // writeable, as checked above
        result.dtype = dtype_of(output);
        result.image_stride_bytes = stride(output, 0);
        result.row_stride_bytes = stride(output, 1);
        const uf_run_options options = {sizeof options, tiling, tile, overlap, threshold};
        checked([&] { return uf_segment(engine_.get(), &source, &options, &result); });
    }

  private:
    struct Close {
        void operator()(uf_engine *engine) const { uf_engine_close(engine); }
    };
    std::unique_ptr<uf_engine, Close> engine_;
};

} // namespace

PYBIND11_MODULE(_native, module) {
    module.doc() = "The C API of unet_fast as a Python class; use unet_fast.Engine.";
    module.def("version", &uf_version);
    py::class_<Engine>(module, "Engine")
        .def(py::init<const py::object &, const py::object &, const std::string &, const std::string &,
                      const std::string &, int32_t, bool>(),
             py::kw_only(), py::arg("path"), py::arg("data"), py::arg("device"), py::arg("precision"),
             py::arg("cpu_isa"), py::arg("threads"), py::arg("refuse_embedded_code"))
        .def("info", &Engine::info)
        .def("output_size", &Engine::output_size, py::arg("height"), py::arg("width"), py::arg("tiling"),
             py::arg("tile"), py::arg("overlap"))
        .def("segment", &Engine::segment, py::arg("image"), py::arg("output"), py::kw_only(), py::arg("max_value"),
             py::arg("tiling"), py::arg("tile"), py::arg("overlap"), py::arg("threshold"));
}
