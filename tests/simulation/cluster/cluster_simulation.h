// A whole cluster in one thread, from one seed: coordinators, servers and agents with their tasks
// around the real cores, ZooKeeper, disks and the network simulated, and misfortunes of all kinds.
//
// A job runs while a random subset of the faults below strikes at random moments, several at once.
// Then everything heals, and the job must succeed within a bound of simulated time. The shells are
// simulated ones that do what the daemons' shells do (each names its original); what they guard can
// be switched off one by one (Mutant), and then some seed must fail.
//
// Checked all along (numbers as in docs/architecture.md, "The simulation"):
//   I1-I3  every shard's values are exactly what its watermarks say, live and in every image: no
//          push lost, none applied twice, none beyond its verdict
//   I4     versions only grow within an epoch, and within a lineage for whoever pulls
//   I5     a committed checkpoint is one cut: every live worker's marker, every dead worker's last
//          push, the same on every shard, and its data position is that of the cut
//   I6     no write of an older leader reaches ZooKeeper after a newer one began
//   I7     a pull holds the worker's own acknowledged pushes
//   I8     after all has healed the job succeeds within a bound
//   I9     what ZooKeeper names as committed is durable, with the digests of its manifest
//   I10    a ring lets go only of what the newest committed checkpoint holds on every shard
//   I11    who goes on as the first of a chain has all that anybody was told of the shard
//   I12    who was the first before acknowledges nothing that the new one lacks
//   I13    copies of a shard are equal, bit for bit, after the same changes
//   at the end: every record is in the result, and only what a lost agent had not reported is in it
//   more than once; a stream never breaks; a job never fails.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "tests/simulation/cluster/world.h"

namespace ps::simulation {

enum class FaultKind {
  kKillTask,
  kKillAgent,
  kKillServer,
  kKillCoordinator,
  kCrashMachine,  // with what it has not synced, and its shared memory
  kPower,         // all machines at once
  kZooKeeperAway,
  kCutFromZooKeeper,  // one machine; long enough and its session expires
  kDropZooKeeper,     // a client loses its connection for a moment, answers with it
  kIsolate,           // one machine from all others
  kCutPair,           // two machines
  kCutOneWay,         // messages pass in one direction only
  kSlow,              // a machine's messages take long
  kDiskFull,          // one machine's writes fail
  kPause,             // a machine stands still, and goes on
  kDeleteLeader,      // an operator's hand: the leader's node goes, its session stays
};
inline constexpr int kFaultKinds = 16;

struct Fault {
  FaultKind kind = FaultKind::kKillTask;
  std::int64_t at_ms = 0;
  std::int64_t lasts_ms = 0;  // until it heals, or the process starts again
  std::uint32_t target = 0;   // which machine, by chance
  std::uint32_t other = 0;
};
const char* FaultName(FaultKind kind);
std::string Describe(const Fault& fault);

struct ClusterOptions {
  std::uint64_t seed = 1;
  Mutant mutant = Mutant::kNone;
  // Of the seed's faults those whose entry is false do not happen; empty: all do.
  std::vector<bool> faults;
  std::optional<int> replicas;  // instead of the seed's
  // Of all seeds a third has servers whose nodes go, or that are taken for dead, while they live
  // on, and that come back as the same process: chains must bear that, and shards without backups
  // are adopted or restored. Another third has servers and agents that an operator lets drain, or
  // cordons, for a while.
  bool suspicions = true;
  std::function<void(const std::string&)> log;
};

struct ClusterReport {
  std::string violation;  // empty: all held
  std::vector<Fault> faults;
  std::uint64_t trace_hash = 0;  // of the history; of several reports their sum
  std::uint64_t events = 0;
  std::int64_t virtual_ms = 0;
  std::uint64_t messages = 0;
  std::uint64_t pushes = 0;
  std::uint64_t checkpoints = 0;     // committed, each of which was checked
  std::uint64_t increments = 0;      // of their shards, those that build on earlier ones
  std::uint64_t kept_checked = 0;    // checks of those that are still listed
  std::uint64_t copies_checked = 0;  // of shards, in folders that are not shared
  std::uint64_t disks_lost = 0;
  std::uint64_t checks = 0;
  std::uint64_t leaders = 0;
  std::uint64_t restores = 0;
  std::uint64_t promotions = 0;
  std::uint64_t adoptions = 0;  // of servers that came back in time
  std::uint64_t copies_compared = 0;
  std::uint64_t backups_lost = 0;  // times
  std::uint64_t suspicions = 0;
  std::uint64_t drains = 0;
  std::uint64_t suspensions = 0;
  std::uint64_t scalings = 0;  // of the number of workers
  std::uint64_t moves = 0;     // of shards, from servers that drain
  std::uint64_t too_old = 0;
  std::uint64_t rewinds = 0;
  std::uint64_t incarnations = 0;
  std::uint64_t records_lost = 0;      // with the machines that held them
  std::uint64_t records_repeated = 0;  // of agents that were lost
  std::uint64_t strikes[kFaultKinds] = {};

  ClusterReport& operator+=(const ClusterReport& other);
};

ClusterReport RunCluster(const ClusterOptions& options);

// The fewest faults of the seed, found by leaving them out one by one, with which it still fails.
std::vector<bool> Shrink(const ClusterOptions& options);

}  // namespace ps::simulation
