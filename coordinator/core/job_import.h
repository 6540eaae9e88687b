// An import that is under way, in memory only: a take-over ends it.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>

#include "checkpoint/manifest.h"
#include "common/result.h"
#include "coordinator/core/job.h"

namespace ps::coordinator {

struct Job::Import_ {
  ImportOrder order;
  checkpoint::Manifest manifest;
  std::string directory;  // where it goes: "job-9/ckpt-12"
  struct Copies {
    std::set<Round> bases;
    std::string fetching;        // the server that has been told to; one at a time
    std::set<std::string> done;  // servers
    std::set<std::string> failed;
    std::string failure;  // of the last one
  };
  std::map<std::string, Copies> parts;
  std::map<std::string, PartPlaces::Store> stores;       // of the servers that were told to
  std::set<std::string> told;                            // servers that may have something of it
  std::map<std::string, std::set<std::string>> holders;  // once all is copied: servers, parts
  std::set<std::string> written;                         // of these, that have the manifest
  std::string waits;                                     // as the phase's reason says
};

// What a job is whose only checkpoint has this manifest: it cannot run, and other jobs can begin
// with it. `name` empty: that of the manifest. kInvalid if this version does not understand it.
Result<JobDefinition> DefinitionOfImport(const checkpoint::Manifest& manifest,
                                         const std::string& name);

}  // namespace ps::coordinator
