# find_package(unet_fast CONFIG): unet_fast::unet_fast, the shared library, and, where it was built,
# unet_fast::unet_fast_static.
include(CMakeFindDependencyMacro)
find_dependency(Threads)
include("${CMAKE_CURRENT_LIST_DIR}/unet_fast-targets.cmake")
