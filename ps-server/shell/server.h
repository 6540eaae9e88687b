// A server without ZooKeeper: its lanes, its disk threads, and what it says to the coordinator.
//
// It acts on maps only where they name its own process id. The leader's control
// endpoint is given by SetLeader(); all else comes over that connection. Belongs
// to the loop's thread; lanes and disk threads reach it by posting to the loop.
#pragma once

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "checkpoint/remote/file_service.h"
#include "common/ids.h"
#include "common/messages/control.h"
#include "common/net/context.h"
#include "common/net/control_client.h"
#include "common/net/http_server.h"
#include "common/net/loop.h"
#include "common/result.h"
#include "ps-server/core/lane_core.h"
#include "ps-server/shell/checkpoint_store.h"
#include "ps-server/shell/lane.h"
#include "ps-server/shell/metrics.h"
#include "ps-server/shell/scrubber.h"
#include "ps-server/shell/source_loader.h"
#include "ps-server/shell/task_thread.h"

namespace ps::server {

struct ServerConfig {
  std::string name;
  std::string procid;              // new at each start of the process
  std::string bind = "127.0.0.1";  // address of the lanes and the admin endpoint
  std::string advertise;           // what others connect to; empty: `bind`
  std::uint32_t lanes = 1;
  std::string rack;             // what fails at once; empty: not known
  std::uint64_t copy_rate = 0;  // bytes of new backups that leave per second; 0: no limit
  std::filesystem::path checkpoint_dir;
  std::optional<std::uint16_t> admin_port;  // 0: any free one; absent: no admin endpoint
  net::Milliseconds report_interval{500};
  // At most so much is read of checkpoints to find damage; 0: nothing.
  std::uint64_t scrub_bytes_per_second = std::uint64_t{10} << 20;
};

// How the server is, in numbers.
struct ServerSummary {
  std::size_t jobs = 0;
  std::size_t shards = 0;  // of which it is the first, or is to be
  std::uint32_t slowest_lane = 0;
  std::int64_t slowest_lane_ms = 0;  // since that lane last began a round
};

class Server {
  struct Private {};  // makes the constructor below ours alone

 public:
  // kIo: the checkpoint directory; kConflict: a port is taken; kUsage: an address makes no sense.
  // `loop` and `context` outlive the server.
  static Result<std::unique_ptr<Server>> Start(net::Loop& loop, net::Context& context,
                                               ServerConfig config);
  Server(Private, net::Loop& loop, net::Context& context, ServerConfig config);
  ~Server();
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  // The leading coordinator's control endpoint; empty: there is none known.
  void SetLeader(const std::string& endpoint);
  bool registered() const { return control_->registered(); }
  ServerSummary Summary() const;

  const std::vector<std::string>& lane_endpoints() const { return lane_endpoints_; }
  const std::string& admin_endpoint() const { return admin_endpoint_; }  // "127.0.0.1:8080"

 private:
  struct Job;

  std::string BindAnyPort() const;  // "tcp://127.0.0.1:*"
  Status StartFileService();
  Status StartLanes();
  Status StartAdmin();
  void Answer(const net::HttpRequest& request, const net::Responder& responder);

  // ---- from the coordinator
  control::MessageT Registration() const;
  void OnMessage(control::MessageT message);
  void OnJobStart(const control::JobStartT& start);
  void OnJobUpdate(const control::JobUpdateT& update);
  void OnJobDrop(JobId job);
  void OnRoundBegin(const control::RoundBeginT& begin);
  void OnRoundAbort(const control::RoundAbortT& abort);
  void OnWriteManifest(const control::WriteManifestT& write);
  void OnCopyPart(const control::CopyPartT& copy);
  // A damaged part of the own folder: another server may have it whole.
  void OnRepairPart(const control::RepairPartT& repair);
  // The round came to nothing.
  void DiscardCopies(JobId job, Round round);
  void OnRoundCommitted(const control::RoundCommittedT& committed);
  void ApplyUpdate(Job& job, const control::MapT* map, const control::LiveSetT* live);
  // Where the job's checkpoints are restored from: of a JobStart or a JobUpdate.
  template <typename MessageT>
  static void TakeSources(Job& job, const MessageT& message);

  // ---- from lanes and disk threads
  void OnLaneEvent(std::uint32_t lane, LaneEvent event);
  void OnFrozen(std::uint32_t lane, LaneFrozen frozen);
  void OnRoundFailed(JobId job, Round round, const std::string& reason);
  void OnRestoreWanted(std::uint32_t lane, const RestoreWanted& wanted);
  void OnLoadWanted(std::uint32_t lane, const RestoreWanted& wanted);
  // Makes the shard on a restore thread: `reader`, a RestoreReader or SourceLoader of that thread,
  // has the sources, and read() fills a new shard until it is Ok or no server is left to read from;
  // `what` then is, for the log.
  template <typename Reader>
  void MakeShardOn(std::size_t thread_number, std::uint32_t lane, const RestoreWanted& wanted,
                   const std::string& what, const std::vector<PartSource>& sources, Reader& reader,
                   std::function<Status(Shard&)> read);
  // `sources`: what was read from, beside the own folder.
  void OnRestoreFailed(const RestoreWanted& wanted, const Error& error,
                       const std::vector<PartSource>& sources);
  void OnDamagedPart(const DamagedPart& damaged);
  void WriteRound(Job& job);

  void Report();
  // To the coordinator; what cannot be sent is counted and logged: it asks again, or gives up.
  void Send(const control::MessageT& message);
  void PostToLane(std::uint32_t lane, Lane::Command command);
  void PostToLanes(const Lane::Command& command);
  // Runs `task` on the loop if the server still lives then. From any thread.
  template <typename Task>
  void PostToLoop(Task task);
  Job* FindJob(JobId job);

  net::Loop& loop_;
  net::Context& context_;
  const ServerConfig config_;
  const std::uint64_t row_hash_seed_;  // of this process; nobody else knows it

  std::string store_id_;  // of the checkpoint directory
  std::unique_ptr<checkpoint::FileService> files_;
  std::string files_endpoint_;
  std::vector<std::string> lane_endpoints_;
  std::string admin_endpoint_;
  std::map<JobId, std::unique_ptr<Job>> jobs_;
  // What is copied of others in a round that does not count yet; also of jobs that are not here.
  struct Copies {
    Round round;
    std::string directory;
    std::set<std::string> parts;
    std::shared_ptr<std::atomic<bool>> stopped;  // read by the copy thread
    bool import = false;  // all that is here of the job came with it, earlier rounds too
  };
  std::map<JobId, Copies> copies_;
  ControlCounters counters_;
  std::unique_ptr<net::ControlClient> control_;
  std::unique_ptr<net::HttpServer> admin_;
  net::Timer report_timer_;
  // Tasks posted to the loop hold it weakly and do nothing once it is gone.
  std::shared_ptr<void> alive_;

  // Last, so that they end first: their threads use the members above.
  std::unique_ptr<Scrubber> scrubber_;                           // null: nothing is scrubbed
  CheckpointStore store_;                                        // the checkpoint thread's
  std::vector<std::unique_ptr<RestoreReader>> restore_readers_;  // each one restore thread's
  std::vector<std::unique_ptr<SourceLoader>> source_loaders_;    // the same
  std::vector<std::unique_ptr<Lane>> lanes_;
  std::unique_ptr<TaskThread> checkpoint_thread_;
  std::unique_ptr<TaskThread> copy_thread_;
  std::vector<std::unique_ptr<TaskThread>> restore_threads_;
};

}  // namespace ps::server
