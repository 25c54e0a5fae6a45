// Compiles only if csrc/cuda/cuda_driver.h says what NVIDIA's cuda.h says.
//
// Handles are opaque pointers here and there, so parameters are compared by size and by being pointers or not.
#include "cuda/cuda_driver.h"

// Makes cuda.h declare every version of a function by its own name.
#define __CUDA_API_VERSION_INTERNAL
#include <cuda.h>

#include <cstddef>
#include <type_traits>

namespace {

namespace ours = uf::cuda;

template <class Ours, class Theirs> struct Same;
template <class... Ours, class... Theirs> struct Same<ours::Function<Ours...>, CUresult (*)(Theirs...)> {
    static constexpr bool check() {
        if constexpr (sizeof...(Ours) != sizeof...(Theirs))
            return false;
        else
            return ((sizeof(Ours) == sizeof(Theirs) && std::is_pointer_v<Ours> == std::is_pointer_v<Theirs>) && ...);
    }
};

#define CHECK(member, symbol, ...)                                                                                     \
    static_assert(Same<ours::Function<__VA_ARGS__>, decltype(&symbol)>::check(), #symbol);
UF_CUDA_FUNCTIONS(CHECK)
UF_CUDA_OPTIONAL_FUNCTIONS(CHECK)

#define SAME_NUMBER(name, theirs) static_assert(static_cast<int>(ours::name) == static_cast<int>(theirs), #name);
SAME_NUMBER(CU_DEVICE_ATTRIBUTE_CLOCK_RATE, ::CU_DEVICE_ATTRIBUTE_CLOCK_RATE)
SAME_NUMBER(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, ::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)
SAME_NUMBER(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, ::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)
SAME_NUMBER(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, ::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)
SAME_NUMBER(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN,
            ::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)
SAME_NUMBER(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, ::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES)
SAME_NUMBER(CU_POINTER_ATTRIBUTE_MEMORY_TYPE, ::CU_POINTER_ATTRIBUTE_MEMORY_TYPE)
SAME_NUMBER(CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, ::CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL)
SAME_NUMBER(CU_MEMORYTYPE_DEVICE, ::CU_MEMORYTYPE_DEVICE)
SAME_NUMBER(CU_STREAM_DEFAULT, ::CU_STREAM_DEFAULT)
SAME_NUMBER(CU_EVENT_DEFAULT, ::CU_EVENT_DEFAULT)
SAME_NUMBER(CU_EVENT_DISABLE_TIMING, ::CU_EVENT_DISABLE_TIMING)
SAME_NUMBER(CU_JIT_ERROR_LOG_BUFFER, ::CU_JIT_ERROR_LOG_BUFFER)
SAME_NUMBER(CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES, ::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES)

#define SAME_MEMBER(type, theirs, member)                                                                              \
    static_assert(offsetof(ours::type, member) == offsetof(::theirs, member) &&                                        \
                      sizeof(ours::type::member) == sizeof(::theirs::member),                                          \
                  #member);
SAME_MEMBER(CUDA_KERNEL_NODE_PARAMS, CUDA_KERNEL_NODE_PARAMS_v1, func)
SAME_MEMBER(CUDA_KERNEL_NODE_PARAMS, CUDA_KERNEL_NODE_PARAMS_v1, gridDimX)
SAME_MEMBER(CUDA_KERNEL_NODE_PARAMS, CUDA_KERNEL_NODE_PARAMS_v1, blockDimX)
SAME_MEMBER(CUDA_KERNEL_NODE_PARAMS, CUDA_KERNEL_NODE_PARAMS_v1, sharedMemBytes)
SAME_MEMBER(CUDA_KERNEL_NODE_PARAMS, CUDA_KERNEL_NODE_PARAMS_v1, kernelParams)
SAME_MEMBER(CUDA_KERNEL_NODE_PARAMS, CUDA_KERNEL_NODE_PARAMS_v1, extra)
static_assert(sizeof(ours::CUDA_KERNEL_NODE_PARAMS) == sizeof(::CUDA_KERNEL_NODE_PARAMS_v1));
SAME_MEMBER(CUDA_MEMCPY2D, CUDA_MEMCPY2D_v2, srcMemoryType)
SAME_MEMBER(CUDA_MEMCPY2D, CUDA_MEMCPY2D_v2, srcDevice)
SAME_MEMBER(CUDA_MEMCPY2D, CUDA_MEMCPY2D_v2, srcPitch)
SAME_MEMBER(CUDA_MEMCPY2D, CUDA_MEMCPY2D_v2, dstMemoryType)
SAME_MEMBER(CUDA_MEMCPY2D, CUDA_MEMCPY2D_v2, dstDevice)
SAME_MEMBER(CUDA_MEMCPY2D, CUDA_MEMCPY2D_v2, dstPitch)
SAME_MEMBER(CUDA_MEMCPY2D, CUDA_MEMCPY2D_v2, WidthInBytes)
SAME_MEMBER(CUDA_MEMCPY2D, CUDA_MEMCPY2D_v2, Height)
static_assert(sizeof(ours::CUDA_MEMCPY2D) == sizeof(::CUDA_MEMCPY2D_v2));
SAME_MEMBER(CUgraphEdgeData, CUgraphEdgeData, from_port)
SAME_MEMBER(CUgraphEdgeData, CUgraphEdgeData, to_port)
SAME_MEMBER(CUgraphEdgeData, CUgraphEdgeData, type)
static_assert(sizeof(ours::CUgraphEdgeData) == sizeof(::CUgraphEdgeData));
static_assert(CU_GRAPH_KERNEL_NODE_PORT_PROGRAMMATIC == 1 && CU_GRAPH_DEPENDENCY_TYPE_PROGRAMMATIC == 1);

} // namespace
