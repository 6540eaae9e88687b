# What is installed beside the programs, and the Debian packages: scripts/package.
#
#   ds-common       user, directories, the slice; for the daemons
#   ds-coordinator  ds-server  ds-worker   a daemon each, with unit and /etc/ds/*.conf
#   ds-cli          ds-cli and ds-bench, with completions
#   ds-operator     ds-scale-out and ds-rolling-upgrade
#   ds-doc          the documents and examples

# Only packages for the system itself have configuration and units.
set(units lib/systemd/system)
install(FILES systemd/sysusers.d-ds.conf DESTINATION lib/sysusers.d RENAME ds.conf COMPONENT common)
install(FILES systemd/tmpfiles.d-ds.conf DESTINATION lib/tmpfiles.d RENAME ds.conf COMPONENT common)
install(FILES systemd/ds.slice systemd/ds-backup@.service systemd/ds-backup@.timer
        DESTINATION ${units} COMPONENT common)
install(FILES systemd/ps-coordinator.service DESTINATION ${units} COMPONENT coordinator)
install(FILES systemd/ps-server@.service DESTINATION ${units} COMPONENT server)
install(FILES systemd/ps-worker@.service DESTINATION ${units} COMPONENT worker)
install(FILES systemd/examples/ds-backup-s3.conf DESTINATION share/doc/ds-common/examples
        COMPONENT common)
install(FILES systemd/examples/ps-worker-gpu.conf DESTINATION share/doc/ds-worker/examples
        COMPONENT worker)
foreach(component coordinator server worker)
  set(name ps-${component})
  if(component STREQUAL coordinator)
    set(name coordinator)
  endif()
  install(FILES packaging/conf/${name}.conf DESTINATION /etc/ds COMPONENT ${component})
endforeach()
# What works on many hosts over ssh: scripts with a module beside them, found through a link.
set(operator ${PROJECT_BINARY_DIR}/operator)
configure_file(scripts/nodes.py ${operator}/share/ds-operator/nodes.py @ONLY)
foreach(script scale_out rolling_upgrade)
  configure_file(scripts/${script} ${operator}/share/ds-operator/${script} COPYONLY)
  string(REPLACE "_" "-" command ds-${script})
  install(PROGRAMS ${operator}/share/ds-operator/${script} DESTINATION share/ds-operator COMPONENT operator)
  file(MAKE_DIRECTORY ${operator}/bin)
  file(CREATE_LINK ../share/ds-operator/${script} ${operator}/bin/${command} SYMBOLIC)
  install(FILES ${operator}/bin/${command} DESTINATION bin COMPONENT operator)
  ps_man_page(packaging/man/${command}.1 COMPONENT operator)
endforeach()
install(FILES ${operator}/share/ds-operator/nodes.py DESTINATION share/ds-operator COMPONENT operator)
install(FILES README.md checkpoint/FORMAT.md DESTINATION share/doc/ds-doc COMPONENT doc)
install(FILES CHANGELOG.md DESTINATION share/doc/ds-doc RENAME CHANGES.md COMPONENT doc)
install(DIRECTORY docs DESTINATION share/doc/ds-doc COMPONENT doc)
install(DIRECTORY examples DESTINATION share/doc/ds-doc COMPONENT doc)

set(CPACK_GENERATOR DEB)
set(CPACK_PACKAGE_NAME ds)
set(CPACK_PACKAGE_VENDOR ds)
set(CPACK_PACKAGE_VERSION ${PROJECT_VERSION})
set(CPACK_PACKAGE_CONTACT "The ds maintainers <maintainers@ds.invalid>"
    CACHE STRING "Maintainer field of the packages")
set(CPACK_INSTALL_PREFIX /usr)
set(CPACK_PACKAGING_INSTALL_PREFIX /usr)
# For /etc/ds.
set(CPACK_SET_DESTDIR ON)
set(CPACK_STRIP_FILES ON)
set(CPACK_DEB_COMPONENT_INSTALL ON)
set(CPACK_COMPONENTS_GROUPING IGNORE)
set(CPACK_COMPONENTS_ALL common coordinator server worker cli operator doc)
if(NOT PS_ENGINE)
  list(REMOVE_ITEM CPACK_COMPONENTS_ALL worker)  # without ps-task it is of no use
endif()
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_PACKAGE_HOMEPAGE "")
set(CPACK_DEBIAN_PACKAGE_CONTROL_STRICT_PERMISSION ON)
set(CPACK_DEBIAN_ENABLE_COMPONENT_DEPENDS OFF)
set(CPACK_DEBIAN_PACKAGE_RELEASE 1)
set(full_version ${PROJECT_VERSION}-${CPACK_DEBIAN_PACKAGE_RELEASE})
set(scripts ${PROJECT_BINARY_DIR}/packaging)

# The files that policy wants in each package. Two builds of one commit are alike.
set(source_time $ENV{SOURCE_DATE_EPOCH})
if(NOT source_time)
  execute_process(COMMAND git -C ${PROJECT_SOURCE_DIR} log -1 --format=%ct OUTPUT_VARIABLE source_time
                  OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
endif()
if(NOT source_time)
  set(source_time 0)
endif()
execute_process(COMMAND date -R -u -d @${source_time} OUTPUT_VARIABLE CHANGELOG_DATE
                OUTPUT_STRIP_TRAILING_WHITESPACE)
set(FULL_VERSION ${full_version})
configure_file(packaging/debian/changelog.in ${scripts}/changelog.Debian @ONLY)
execute_process(COMMAND gzip -9nc ${scripts}/changelog.Debian
                OUTPUT_FILE ${scripts}/changelog.Debian.gz)
foreach(component ${CPACK_COMPONENTS_ALL})
  set(folder share/doc/ds-${component})
  install(FILES ${scripts}/changelog.Debian.gz packaging/debian/copyright DESTINATION ${folder}
          COMPONENT ${component})
endforeach()

# ps_package(COMPONENT summary SECTION name DEPENDS list TEXT lines [ALL] [UNIT name] [CONF file])
function(ps_package component)
  cmake_parse_arguments(A "ALL" "SUMMARY;SECTION;DEPENDS;RECOMMENDS;SUGGESTS;UNIT;CONF;TEXT" "" ${ARGN})
  string(TOUPPER ${component} key)
  set(prefix CPACK_DEBIAN_${key}_)
  set(${prefix}PACKAGE_NAME ds-${component} PARENT_SCOPE)
  set(${prefix}PACKAGE_SECTION ${A_SECTION} PARENT_SCOPE)
  set(${prefix}PACKAGE_DEPENDS "${A_DEPENDS}" PARENT_SCOPE)
  set(${prefix}PACKAGE_RECOMMENDS "${A_RECOMMENDS}" PARENT_SCOPE)
  set(${prefix}PACKAGE_SUGGESTS "${A_SUGGESTS}" PARENT_SCOPE)
  set(CPACK_COMPONENT_${key}_DESCRIPTION "${A_SUMMARY}\n${A_TEXT}" PARENT_SCOPE)
  set(${prefix}DESCRIPTION "${A_SUMMARY}\n${A_TEXT}" PARENT_SCOPE)
  if(A_ALL)
    set(${prefix}PACKAGE_ARCHITECTURE all PARENT_SCOPE)
    set(${prefix}PACKAGE_SHLIBDEPS OFF PARENT_SCOPE)
  else()
    set(${prefix}PACKAGE_SHLIBDEPS ON PARENT_SCOPE)
  endif()
  set(control)
  if(A_CONF)
    file(WRITE ${scripts}/${component}/conffiles "/etc/ds/${A_CONF}\n")
    list(APPEND control ${scripts}/${component}/conffiles)
  endif()
  if(A_UNIT)
    set(UNIT ${A_UNIT})
    string(REPLACE "@." "@*." UNIT_PATTERN ${UNIT})
    string(REPLACE ".service" ".env" ENV_PATTERN ${UNIT_PATTERN})
    foreach(script postinst prerm postrm)
      configure_file(packaging/debian/daemon.${script}.in ${scripts}/${component}/${script} @ONLY
                     FILE_PERMISSIONS OWNER_READ OWNER_WRITE OWNER_EXECUTE GROUP_READ GROUP_EXECUTE
                                      WORLD_READ WORLD_EXECUTE)
      list(APPEND control ${scripts}/${component}/${script})
    endforeach()
  elseif(component STREQUAL common)
    list(APPEND control ${PROJECT_SOURCE_DIR}/packaging/debian/postinst
                        ${PROJECT_SOURCE_DIR}/packaging/debian/prerm
                        ${PROJECT_SOURCE_DIR}/packaging/debian/postrm)
  endif()
  set(${prefix}PACKAGE_CONTROL_EXTRA "${control}" PARENT_SCOPE)
endfunction()

set(of_the_cluster "The ds parameter-server cluster trains models that one machine cannot\n\
hold or feed: workers push sparsified updates asynchronously to sharded\n\
servers, each exactly once.")
ps_package(common ALL SECTION admin DEPENDS "systemd | systemd-sysusers" SUGGESTS "ds-cli, rclone"
  SUMMARY "parameter-server cluster (user, directories and slice)"
  TEXT "${of_the_cluster}\n.\nThis package has the user, the directories, the systemd slice, and the\n\
units that back checkpoints up, for which ds-cli is needed.")
ps_package(coordinator SECTION admin DEPENDS "ds-common (= ${full_version})" SUGGESTS "zookeeperd"
  UNIT ps-coordinator.service CONF coordinator.conf
  SUMMARY "parameter-server cluster (coordinator)"
  TEXT "${of_the_cluster}\n.\nThis package has the coordinator: election, placement, recovery, REST API.")
ps_package(server SECTION admin DEPENDS "ds-common (= ${full_version})"
  UNIT ps-server@.service CONF ps-server.conf
  SUMMARY "parameter-server cluster (parameter server)"
  TEXT "${of_the_cluster}\n.\nThis package has the server that holds shards of the parameters.")
ps_package(worker SECTION admin DEPENDS "ds-common (= ${full_version})" RECOMMENDS "libopenblas0-pthread"
  UNIT ps-worker@.service CONF ps-worker.conf
  SUMMARY "parameter-server cluster (worker agent and engine)"
  TEXT "${of_the_cluster}\n.\nThis package has the agent of worker nodes and the engine of its tasks.")
ps_package(cli SECTION utils SUGGESTS "ds-doc, default-jre-headless"
  SUMMARY "parameter-server cluster (command line)"
  TEXT "${of_the_cluster}\n.\nThis package has ds-cli, which submits and watches jobs, and ds-bench.")
ps_package(operator ALL SECTION admin DEPENDS "ds-cli (>= ${full_version}), openssh-client, python3"
  SUMMARY "parameter-server cluster (many hosts)"
  TEXT "${of_the_cluster}\n.\nThis package has ds-scale-out, which brings machines into a cluster over ssh,\n\
and ds-rolling-upgrade. It is for the operator's machine, not for the nodes.")
ps_package(doc ALL SECTION doc
  SUMMARY "parameter-server cluster (documents)"
  TEXT "${of_the_cluster}\n.\nThis package has the documents and example jobs.")

include(CPack)
