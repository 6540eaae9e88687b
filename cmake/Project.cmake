# What every target of the project is compiled with, and the functions that declare targets.

add_library(ps_options INTERFACE)
target_include_directories(ps_options INTERFACE ${PROJECT_SOURCE_DIR} ${PROJECT_BINARY_DIR}/generated)
set(PS_WARNINGS -Wall -Wextra -Wshadow -Wnon-virtual-dtor)
if(PS_WERROR)
  list(APPEND PS_WARNINGS -Werror)
endif()
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  # g++ 12 reports false positives of these deep inside <string> and <vector> at -O2.
  list(APPEND PS_WARNINGS -Wno-restrict -Wno-stringop-overflow -Wno-array-bounds
       -Wno-maybe-uninitialized -Wno-free-nonheap-object)
endif()
target_compile_options(ps_options INTERFACE "$<$<COMPILE_LANGUAGE:C,CXX>:${PS_WARNINGS}>")
# Of CUDA: the host's half has the same warnings. A product and a sum are rounded one by one, as on
# the CPU; what is constexpr may be called by kernels.
string(REPLACE ";" "," PS_HOST_WARNINGS "${PS_WARNINGS}")
target_compile_options(ps_options INTERFACE "$<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=${PS_HOST_WARNINGS};-fmad=false;--expt-relaxed-constexpr>")
if(PS_WERROR)
  target_compile_options(ps_options INTERFACE $<$<COMPILE_LANGUAGE:CUDA>:-Werror=all-warnings>)
endif()
target_link_libraries(ps_options INTERFACE Threads::Threads)
target_compile_definitions(ps_options INTERFACE PS_VERSION="${PROJECT_VERSION}" SPDLOG_FMT_EXTERNAL)
if(PS_SANITIZE)
  target_compile_options(ps_options INTERFACE
                         "$<$<COMPILE_LANGUAGE:C,CXX>:-fsanitize=${PS_SANITIZE};-fno-omit-frame-pointer>")
  target_link_options(ps_options INTERFACE -fsanitize=${PS_SANITIZE})
  if(PS_SANITIZE MATCHES "thread" AND CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    # Boost.Asio uses fences, which g++ says TSan does not see.
    target_compile_options(ps_options INTERFACE $<$<COMPILE_LANGUAGE:C,CXX>:-Wno-tsan>)
  endif()
  if(PS_SANITIZE MATCHES "undefined")
    target_compile_options(ps_options INTERFACE
                           $<$<COMPILE_LANGUAGE:C,CXX>:-fno-sanitize-recover=undefined>)
    if(CMAKE_CXX_COMPILER_ID STREQUAL "Clang")
      target_compile_options(ps_options INTERFACE -fno-sanitize=function)
    endif()
  endif()
endif()

# ps_library(NAME sources... LIBS targets...): a static library of the project.
function(ps_library name)
  cmake_parse_arguments(A "" "" "LIBS" ${ARGN})
  add_library(${name} STATIC ${A_UNPARSED_ARGUMENTS})
  target_link_libraries(${name} PUBLIC ps_options ${A_LIBS})
endfunction()

# ps_program(NAME sources... COMPONENT package LIBS targets...): an executable, installed; see
# cmake/Packages.cmake for the packages.
function(ps_program name)
  cmake_parse_arguments(A "" "COMPONENT" "LIBS" ${ARGN})
  add_executable(${name} ${A_UNPARSED_ARGUMENTS})
  target_link_libraries(${name} PRIVATE ps_options ${A_LIBS})
  install(TARGETS ${name} RUNTIME DESTINATION bin COMPONENT ${A_COMPONENT})
endfunction()

# ps_man_page(FILE COMPONENT package): a manual page, of the section that its name ends with.
# Installed compressed, without a time in it, so that two builds are alike.
function(ps_man_page file)
  cmake_parse_arguments(A "" "COMPONENT" "" ${ARGN})
  string(REGEX MATCH "[0-9]$" section ${file})
  get_filename_component(name ${file} NAME)
  set(page ${CMAKE_CURRENT_SOURCE_DIR}/${file})
  set(compressed ${PROJECT_BINARY_DIR}/man/${name}.gz)
  add_custom_command(OUTPUT ${compressed}
    COMMAND ${CMAKE_COMMAND} -E make_directory ${PROJECT_BINARY_DIR}/man
    COMMAND gzip -9nc ${page} > ${compressed} DEPENDS ${page} VERBATIM)
  add_custom_target(man_${name} ALL DEPENDS ${compressed})
  install(FILES ${compressed} DESTINATION share/man/man${section} COMPONENT ${A_COMPONENT})
endfunction()

# ps_test(NAME sources... LIBS targets... [TIMEOUT seconds]): a GoogleTest program, each test a ctest.
function(ps_test name)
  cmake_parse_arguments(A "" "TIMEOUT" "LIBS" ${ARGN})
  if(NOT A_TIMEOUT)
    set(A_TIMEOUT 60)
  endif()
  add_executable(${name} ${A_UNPARSED_ARGUMENTS})
  target_link_libraries(${name} PRIVATE ps_options ${A_LIBS} GTest::gtest GTest::gmock GTest::gtest_main)
  gtest_discover_tests(${name} TEST_PREFIX ${name}. DISCOVERY_TIMEOUT 60 PROPERTIES TIMEOUT ${A_TIMEOUT})
endfunction()

# ps_add_subdirectories(DIR...): those that have a CMakeLists.txt.
function(ps_add_subdirectories)
  foreach(directory ${ARGN})
    if(EXISTS ${CMAKE_CURRENT_SOURCE_DIR}/${directory}/CMakeLists.txt)
      add_subdirectory(${directory})
    endif()
  endforeach()
endfunction()

# ps_hot_sources(FILE...): loops over many elements, worth -O3.
function(ps_hot_sources)
  set_source_files_properties(${ARGN} PROPERTIES COMPILE_OPTIONS "$<$<CONFIG:Release>:-O3>")
endfunction()

# ps_kernel_variants(DIRECTORY): what plain.cc, avx2.cc and avx512.cc in it are compiled for.
function(ps_kernel_variants directory)
  set(options "$<$<CONFIG:Release>:-O3>" -ffp-contract=off)
  set_source_files_properties(${directory}/plain.cc PROPERTIES COMPILE_OPTIONS "${options}")
  set_source_files_properties(${directory}/avx2.cc PROPERTIES COMPILE_OPTIONS "${options};-mavx2")
  set_source_files_properties(${directory}/avx512.cc PROPERTIES COMPILE_OPTIONS
    "${options};-mavx512f;-mavx512bw;-mavx512dq;-mavx512vl;-mavx512vbmi2;-mprefer-vector-width=512")
endfunction()
