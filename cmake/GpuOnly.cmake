# The GPU code and what it is made of, for a machine that has a CUDA toolkit but not the packages of
# the rest: a part of the folders, and nothing found by pkg-config, which may not be there.
find_package(CLI11 CONFIG REQUIRED)
find_package(nlohmann_json CONFIG REQUIRED)
find_path(XXHASH_INCLUDE_DIR xxhash.h REQUIRED)
# Not the shared one, which would have to be found again when a program starts.
find_library(XXHASH_LIBRARY NAMES libxxhash.a xxhash REQUIRED)
add_library(PkgConfig::XXHASH UNKNOWN IMPORTED)
set_target_properties(PkgConfig::XXHASH PROPERTIES IMPORTED_LOCATION ${XXHASH_LIBRARY}
                      INTERFACE_INCLUDE_DIRECTORIES ${XXHASH_INCLUDE_DIR})

set(PS_CUDA ON CACHE STRING "" FORCE)
include(cmake/Cuda.cmake)
include(cmake/Project.cmake)

if(PS_ENGINE)
  # The engine too: with a LibTorch for CUDA, by CMAKE_PREFIX_PATH.
  find_package(yaml-cpp CONFIG REQUIRED)
  find_package(ZLIB REQUIRED)
endif()
add_subdirectory(common)
add_subdirectory(ps-worker/core)
add_subdirectory(ps-worker/cuda)
if(PS_ENGINE)
  add_subdirectory(ps-worker/engine)
endif()
add_subdirectory(bench)
if(PS_TESTS)
  enable_testing()
  find_package(GTest CONFIG REQUIRED)
  include(GoogleTest)
  add_subdirectory(tests/support/emulated_cuda)
  add_subdirectory(tests/ps-worker/cuda)
  if(PS_ENGINE)
    add_subdirectory(tests/ps-worker/engine/cuda)
  endif()
endif()
