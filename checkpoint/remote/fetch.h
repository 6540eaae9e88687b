// Brings a whole checkpoint together from wherever its parts lie.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "checkpoint/manifest.h"
#include "checkpoint/storage.h"
#include "common/result.h"

namespace ps::checkpoint {

struct FetchOrder {
  std::filesystem::path directory;  // below each source: "job-7/ckpt-12"
  std::string hash;                 // of the manifest; empty: the first one found is taken
  std::filesystem::path to;         // the round directory here; what it builds on goes beside it
  // Every byte of what is here already is compared with its seal, and what is damaged fetched
  // again. Else parts with the right seal are taken as they are.
  bool check_present = false;
};

struct FetchReport {
  Manifest manifest;
  std::string manifest_hash;
  std::uint64_t bytes = 0;     // copied; what was there already is not counted
  std::uint32_t parts = 0;     // of this round and of those it builds on
  std::uint32_t present = 0;   // of these, that were there
  std::uint32_t repaired = 0;  // and were damaged
};

// Gets the bytes of each piece that is copied, and of all that there are to copy; (0, 0) now and
// then while what is here is checked. False ends the fetch with kClosed.
using FetchProgress = std::function<bool(std::uint64_t piece, std::uint64_t total)>;

// Copies a checkpoint with all that it builds on, each part from the first of `sources` that has it
// undamaged. What is there already stays, so that a fetch which ended early is gone on with.
// Nothing is copied if there is no room for all of it (kIo). The manifest is written last: without
// it nothing counts. `progress` may be empty. kNotFound if no source has the manifest or a part,
// else the error of a source that may have it.
Result<FetchReport> FetchCheckpoint(const std::vector<const Storage*>& sources,
                                    const FetchOrder& order, const FetchProgress& progress);

}  // namespace ps::checkpoint
