# The GPU code is built where nvcc is found: PS_HAS_CUDA says whether, and what is linked then is
# CUDA::cudart. Its compiler, flags and architectures for all targets of the project.

set(PS_CUDA AUTO CACHE STRING "GPU code: AUTO (if nvcc is found), ON (required) or OFF")
set_property(CACHE PS_CUDA PROPERTY STRINGS AUTO ON OFF)
set(PS_HAS_CUDA OFF)

if(PS_CUDA STREQUAL "OFF")
  message(STATUS "GPU code: not built (PS_CUDA is OFF)")
  return()
endif()
if(PS_SANITIZE AND PS_CUDA STREQUAL "AUTO")
  # What it computes is tested there all the same, by a CPU that plays the device (tests/support).
  message(STATUS "GPU code: not built (sanitizers)")
  return()
endif()
if(NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX})
  find_program(PS_NVCC nvcc HINTS ${CUDAToolkit_ROOT}/bin ENV CUDA_HOME ENV CUDA_PATH
               PATHS /usr/local/cuda PATH_SUFFIXES bin)
  if(PS_NVCC)
    set(CMAKE_CUDA_COMPILER ${PS_NVCC})
  endif()
endif()
if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  # A100, H100, and what comes after them through the driver's compiler. "native" needs a GPU.
  set(CMAKE_CUDA_ARCHITECTURES "80-real;90-real;90-virtual")
endif()
set(CMAKE_CUDA_HOST_COMPILER ${CMAKE_CXX_COMPILER} CACHE FILEPATH "nvcc's compiler of host code")
include(CheckLanguage)
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  if(PS_CUDA STREQUAL "ON")
    message(FATAL_ERROR "PS_CUDA is ON, but nvcc is not found or does not work "
                        "(CUDACXX, CUDA_HOME, /usr/local/cuda)")
  endif()
  message(STATUS "GPU code: not built (no nvcc)")
  return()
endif()
enable_language(CUDA)
# CMake 3.25 has no C++20 flag for nvcc. Set before the language is enabled, it breaks its checks.
if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
  set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION "-std=c++20")
endif()
set(CMAKE_CUDA_STANDARD 20)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_EXTENSIONS OFF)
set(CMAKE_CUDA_FLAGS_RELEASE "-O3 -DNDEBUG")
find_package(CUDAToolkit REQUIRED)
set(PS_HAS_CUDA ON)
# For tasks of several GPUs; a toolkit may come without it.
find_path(NCCL_INCLUDE_DIR nccl.h HINTS ${CUDAToolkit_INCLUDE_DIRS})
find_library(NCCL_LIBRARY nccl HINTS ${CUDAToolkit_LIBRARY_DIR})
if(NCCL_INCLUDE_DIR AND NCCL_LIBRARY)
  add_library(NCCL::NCCL UNKNOWN IMPORTED)
  set_target_properties(NCCL::NCCL PROPERTIES IMPORTED_LOCATION ${NCCL_LIBRARY}
                        INTERFACE_INCLUDE_DIRECTORIES ${NCCL_INCLUDE_DIR})
else()
  message(STATUS "GPU code: one GPU a task (NCCL is not found)")
endif()
message(STATUS "GPU code: built with nvcc ${CMAKE_CUDA_COMPILER_VERSION} for "
               "${CMAKE_CUDA_ARCHITECTURES}")
