# find_package(unet_fast CONFIG): unet_fast::unet_fast, the shared library, and, where it was built,
# unet_fast::unet_fast_static.
include(CMakeFindDependencyMacro)
find_dependency(Threads)
include("${CMAKE_CURRENT_LIST_DIR}/unet_fast-targets.cmake")

# A project of C alone is linked without the C++ standard library.
get_property(_unet_fast_languages GLOBAL PROPERTY ENABLED_LANGUAGES)
if(TARGET unet_fast::unet_fast_static AND NOT "CXX" IN_LIST _unet_fast_languages)
  set_property(TARGET unet_fast::unet_fast_static APPEND PROPERTY INTERFACE_LINK_LIBRARIES stdc++ m)
endif()
