// An open checkpoint round, in memory only: a take-over aborts it.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "coordinator/core/job.h"

namespace ps::coordinator {

struct Job::Round_ {
  Round number;
  bool final_round = false;
  bool suspends = false;  // the job is suspended with it
  std::uint64_t started_ms = 0;
  std::string directory;
  std::set<std::string> servers;          // that are the first of shards
  std::set<Incarnation> workers;          // live at the begin
  std::vector<Incarnation> covered_dead;  // replayed before the begin: the cut covers them whole
  struct Cut {
    WorkerId worker;
    Clock clock;
    bool flushed = false;
    std::optional<TaskLossScale> loss_scale;
  };
  std::map<Incarnation, Cut> cuts;
  std::map<std::string, control::PreparedT> prepared;
  // What other servers fetch of a part before the round counts.
  struct Copies {
    std::set<std::string> fetching;  // servers that have been told to
    std::set<std::string> done;
    std::set<std::string> failed;
    std::string failure;  // of the last one
  };
  // Of who wrote or copied parts, as they were then: who is gone since has them nevertheless.
  std::map<std::string, PartPlaces::Store> stores;  // by server
  std::map<std::string, Copies> copies;  // by part, which is named by the server that wrote it
  std::uint64_t news_ms = 0;             // when it last came on
  std::string manifest;                  // once all cuts and images are there
  std::string manifest_hash;
  Round base;             // that images may build on
  std::set<Round> bases;  // that some do
  std::uint64_t bytes = 0;
  std::uint64_t state_bytes = 0;
  std::uint64_t step = 0;
  std::uint64_t samples = 0;
  std::vector<std::string> values_digests;
  std::map<std::string, std::set<std::string>> holders;  // servers that get the manifest: parts
  std::set<std::string> written;
};

}  // namespace ps::coordinator
