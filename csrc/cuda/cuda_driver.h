// The part of the CUDA driver API that this library uses, opened at run time: one binary serves machines with and
// without a GPU, and building needs no CUDA toolkit.  Types and numbers are those of NVIDIA's cuda.h, which keeps them
// stable; entry points carry their ABI version (`_v2`) in the name that is looked up.
#pragma once

#include <cstddef>
#include <cstdint>

namespace uf::cuda {

using CUresult = int; // 0 is success
using CUdevice = int;
using CUdeviceptr = unsigned long long;
using CUcontext = struct CUctx_st *;
using CUmodule = struct CUmod_st *;
using CUfunction = struct CUfunc_st *;
using CUstream = struct CUstream_st *;
using CUevent = struct CUevent_st *;
using CUgraph = struct CUgraph_st *;
using CUgraphNode = struct CUgraphNode_st *;
using CUgraphExec = struct CUgraphExec_st *;

constexpr int CU_DEVICE_ATTRIBUTE_CLOCK_RATE = 13; // kHz, the highest
constexpr int CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT = 16;
constexpr int CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR = 75;
constexpr int CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR = 76;
constexpr int CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN = 97;
constexpr int CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8;
constexpr int CU_POINTER_ATTRIBUTE_MEMORY_TYPE = 2;
constexpr int CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL = 9;
constexpr unsigned CU_MEMORYTYPE_DEVICE = 2;
constexpr unsigned CU_STREAM_DEFAULT = 0;
const CUstream CU_STREAM_LEGACY = reinterpret_cast<CUstream>(uintptr_t{1}); // the default stream by its own name
constexpr unsigned CU_EVENT_DEFAULT = 0;
constexpr unsigned CU_EVENT_DISABLE_TIMING = 2;
constexpr unsigned CU_MEMHOSTALLOC_DEFAULT = 0;
constexpr int CU_JIT_ERROR_LOG_BUFFER = 5;
constexpr int CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES = 6;

struct CUDA_KERNEL_NODE_PARAMS { // version 1: what cuGraphAddKernelNode without a suffix takes
    CUfunction func;
    unsigned gridDimX, gridDimY, gridDimZ;
    unsigned blockDimX, blockDimY, blockDimZ;
    unsigned sharedMemBytes;
    void **kernelParams;
    void **extra;
};

struct CUDA_MEMCPY2D { // version 2
    size_t srcXInBytes, srcY;
    unsigned srcMemoryType;
    const void *srcHost;
    CUdeviceptr srcDevice;
    void *srcArray;
    size_t srcPitch;
    size_t dstXInBytes, dstY;
    unsigned dstMemoryType;
    void *dstHost;
    CUdeviceptr dstDevice;
    void *dstArray;
    size_t dstPitch;
    size_t WidthInBytes, Height;
};

struct CUgraphEdgeData {
    unsigned char from_port; // 1: when every block of the upstream kernel has allowed it, not when it has ended
    unsigned char to_port;
    unsigned char type; // 1: programmatic
    unsigned char reserved[5];
};

// Throws uf::Error: UF_ERR_OUT_OF_MEMORY; UF_ERR_DEVICE_LOST where the driver says that the process cannot use the GPU
// any more; UF_ERR_UNSUPPORTED where this machine has no GPU, or a driver that cannot run the code; UF_ERR_BAD_FILE for
// code that no driver would load; else UF_ERR_DEVICE.
[[noreturn]] void throw_failure(const char *call, CUresult result);

// An entry point.  Calling it throws what `throw_failure` says; `quietly` gives the result back.
template <class... Arguments> class Function {
  public:
    void operator()(Arguments... arguments) const {
        const CUresult result = pointer_(arguments...);
        if (result != 0)
            throw_failure(name_, result);
    }
    CUresult quietly(Arguments... arguments) const noexcept { return pointer_(arguments...); }
    explicit operator bool() const { return pointer_ != nullptr; }
    void bind(const char *name, void *symbol) {
        name_ = name;
        pointer_ = reinterpret_cast<Pointer>(symbol);
    }

  private:
    using Pointer = CUresult (*)(Arguments...);
    const char *name_ = "";
    Pointer pointer_ = nullptr;
};

// FUNCTION(name here, symbol in the library, arguments...)
#define UF_CUDA_FUNCTIONS(FUNCTION)                                                                                    \
    FUNCTION(init, cuInit, unsigned)                                                                                   \
    FUNCTION(driver_get_version, cuDriverGetVersion, int *)                                                            \
    FUNCTION(get_error_name, cuGetErrorName, CUresult, const char **)                                                  \
    FUNCTION(get_error_string, cuGetErrorString, CUresult, const char **)                                              \
    FUNCTION(device_get_count, cuDeviceGetCount, int *)                                                                \
    FUNCTION(device_get, cuDeviceGet, CUdevice *, int)                                                                 \
    FUNCTION(device_get_name, cuDeviceGetName, char *, int, CUdevice)                                                  \
    FUNCTION(device_get_attribute, cuDeviceGetAttribute, int *, int, CUdevice)                                         \
    FUNCTION(primary_context_retain, cuDevicePrimaryCtxRetain, CUcontext *, CUdevice)                                  \
    FUNCTION(primary_context_release, cuDevicePrimaryCtxRelease_v2, CUdevice)                                          \
    FUNCTION(context_push, cuCtxPushCurrent_v2, CUcontext)                                                             \
    FUNCTION(context_pop, cuCtxPopCurrent_v2, CUcontext *)                                                             \
    FUNCTION(module_load_data, cuModuleLoadDataEx, CUmodule *, const void *, unsigned, int *, void **)                 \
    FUNCTION(module_unload, cuModuleUnload, CUmodule)                                                                  \
    FUNCTION(module_get_function, cuModuleGetFunction, CUfunction *, CUmodule, const char *)                           \
    FUNCTION(function_set_attribute, cuFuncSetAttribute, CUfunction, int, int)                                         \
    FUNCTION(memory_allocate, cuMemAlloc_v2, CUdeviceptr *, size_t)                                                    \
    FUNCTION(memory_free, cuMemFree_v2, CUdeviceptr)                                                                   \
    FUNCTION(host_allocate, cuMemHostAlloc, void **, size_t, unsigned)                                                 \
    FUNCTION(host_free, cuMemFreeHost, void *)                                                                         \
    FUNCTION(copy_to_device, cuMemcpyHtoDAsync_v2, CUdeviceptr, const void *, size_t, CUstream)                        \
    FUNCTION(copy_to_host, cuMemcpyDtoHAsync_v2, void *, CUdeviceptr, size_t, CUstream)                                \
    FUNCTION(copy, cuMemcpy, CUdeviceptr, CUdeviceptr, size_t) /* any two places; done on return only to the host */   \
    FUNCTION(copy_on_device, cuMemcpyDtoDAsync_v2, CUdeviceptr, CUdeviceptr, size_t, CUstream)                         \
    FUNCTION(copy_rows, cuMemcpy2DUnaligned_v2, const CUDA_MEMCPY2D *) /* on the legacy default stream, any pitch */   \
    FUNCTION(fill_bytes, cuMemsetD8Async, CUdeviceptr, unsigned char, size_t, CUstream)                                \
    FUNCTION(pointer_get_attribute, cuPointerGetAttribute, void *, int, CUdeviceptr)                                   \
    FUNCTION(stream_create, cuStreamCreate, CUstream *, unsigned)                                                      \
    FUNCTION(stream_destroy, cuStreamDestroy_v2, CUstream)                                                             \
    FUNCTION(stream_synchronize, cuStreamSynchronize, CUstream)                                                        \
    FUNCTION(stream_wait_event, cuStreamWaitEvent, CUstream, CUevent, unsigned)                                        \
    FUNCTION(stream_get_context, cuStreamGetCtx, CUstream, CUcontext *)                                                \
    FUNCTION(event_create, cuEventCreate, CUevent *, unsigned)                                                         \
    FUNCTION(event_destroy, cuEventDestroy_v2, CUevent)                                                                \
    FUNCTION(event_record, cuEventRecord, CUevent, CUstream)                                                           \
    FUNCTION(event_query, cuEventQuery, CUevent)                                                                       \
    FUNCTION(event_synchronize, cuEventSynchronize, CUevent)                                                           \
    FUNCTION(event_elapsed_time, cuEventElapsedTime, float *, CUevent, CUevent) /* milliseconds */                     \
    FUNCTION(graph_create, cuGraphCreate, CUgraph *, unsigned)                                                         \
    FUNCTION(graph_destroy, cuGraphDestroy, CUgraph)                                                                   \
    FUNCTION(graph_add_kernel, cuGraphAddKernelNode, CUgraphNode *, CUgraph, const CUgraphNode *, size_t,              \
             const CUDA_KERNEL_NODE_PARAMS *)                                                                          \
    FUNCTION(graph_instantiate, cuGraphInstantiateWithFlags, CUgraphExec *, CUgraph, unsigned long long)               \
    FUNCTION(graph_exec_destroy, cuGraphExecDestroy, CUgraphExec)                                                      \
    FUNCTION(graph_exec_set_kernel, cuGraphExecKernelNodeSetParams, CUgraphExec, CUgraphNode,                          \
             const CUDA_KERNEL_NODE_PARAMS *)                                                                          \
    FUNCTION(graph_upload, cuGraphUpload, CUgraphExec, CUstream)                                                       \
    FUNCTION(graph_launch, cuGraphLaunch, CUgraphExec, CUstream)

// Those that older drivers lack and that one can do without: null there.
#define UF_CUDA_OPTIONAL_FUNCTIONS(FUNCTION)                                                                           \
    FUNCTION(graph_add_edges_with_data, cuGraphAddDependencies_v2, CUgraph, const CUgraphNode *, const CUgraphNode *,  \
             const CUgraphEdgeData *, size_t) /* 12.3 */

struct Driver {
#define UF_CUDA_MEMBER(member, symbol, ...) Function<__VA_ARGS__> member;
    UF_CUDA_FUNCTIONS(UF_CUDA_MEMBER)
    UF_CUDA_OPTIONAL_FUNCTIONS(UF_CUDA_MEMBER)
#undef UF_CUDA_MEMBER
};

// The driver, opened and initialised at the first call that succeeds.  Throws UF_ERR_UNSUPPORTED where the machine has
// none, or one without a GPU.
const Driver &driver();

} // namespace uf::cuda
