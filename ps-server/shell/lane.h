// One lane: a thread with a ROUTER socket of its own and the LaneCore behind it.
//
// The thread waits for its socket and a mailbox of commands; nothing else touches
// the core. Messages are read in place, in the frames that libzmq received, and
// what is there is handled before the answers go out, so that a peer's pushes
// are answered together; answers to pulls are sent from the core's own buffers.
// Sends never block: an answer to a peer that is gone, or that does not read
// while its queue is full, is dropped and counted; workers ask again.
// Messages cost no allocation of ours once the lane has warmed up, without chains.
// Of a shard with a chain the lane speaks to the lane of the next member as a worker does, over a
// DEALER of its own; what that one does not take is dropped here too, and sent again by the core.
// Start, destruction, Post and the getters may be called from any thread; the
// event callback runs on the lane's thread and must only pass the event on.
#pragma once

#include <poll.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>
#include <zmq.hpp>

#include "common/net/context.h"
#include "common/net/sparse_log.h"
#include "common/net/unique_fd.h"
#include "common/result.h"
#include "ps-server/core/lane_core.h"

namespace ps::server {

struct LaneOptions {
  std::string bind = "tcp://127.0.0.1:*";
  std::uint32_t number = 0;
  // Answers queued for one peer. libzmq gives room back half a queue at a time, so it must hold
  // twice the largest window of pushes, and the answers to pulls and to markers.
  int send_high_water = 128;
  int receive_high_water = 64;  // messages of one peer before TCP pushes back
  int status_interval_ms = 200;
  std::uint64_t row_hash_seed = 0;  // see LaneMemory
  std::uint64_t image_rate = 0;     // see ImageBudget
};

// What the lane was like a moment ago.
struct LaneStatus {
  std::vector<JobStatus> jobs;
  LaneCounters counters;
  std::size_t parked_pulls = 0;
  std::uint64_t bad_framing = 0;   // messages with other than one or two frames
  std::uint64_t unroutable = 0;    // answers to peers that are gone
  std::uint64_t slow_peer = 0;     // answers dropped because the peer does not read
  std::uint64_t unsent_chain = 0;  // messages to next members of chains, dropped
  std::uint64_t messages = 0;      // received
};

class Lane {
  struct Private {};  // makes the constructor below ours alone

 public:
  using Command = std::function<void(LaneCore&)>;
  using EventFn = std::function<void(LaneEvent)>;

  static constexpr std::size_t kCommandsMax = 1 << 16;

  // kConflict if the address cannot be bound. `context` outlives the lane.
  static Result<std::unique_ptr<Lane>> Start(net::Context& context, LaneOptions options,
                                             EventFn on_event);
  Lane(Private, net::Context& context, LaneOptions options, EventFn on_event);
  // Stops the thread; commands that it has not run are dropped.
  ~Lane();
  Lane(const Lane&) = delete;
  Lane& operator=(const Lane&) = delete;

  // "tcp://127.0.0.1:4711", with the real port.
  const std::string& endpoint() const { return endpoint_; }

  // Runs the command on the lane's thread, in order. kUnreachable if kCommandsMax wait already.
  Status Post(Command command);

  LaneStatus status() const;

  // net::MonotonicMs() when the lane last began a round; it begins one at least each
  // status_interval_ms unless something in it takes longer.
  std::int64_t last_round_ms() const { return last_round_ms_.load(std::memory_order_relaxed); }

 private:
  struct SocketCloser {
    void operator()(void* socket) const { zmq_close(socket); }
  };

  void Run();
  // Until there is something to receive, a command, or the time is over.
  void Wait(std::int64_t timeout_ms);
  void RunCommands();
  // True if there may be more.
  bool ReceiveSome();
  // False if there is no whole message.
  bool ReceiveOne();
  // True if something was sent.
  bool Flush();
  void SendReply(LaneReply& reply);
  // True if something was sent.
  bool SendToChains();
  void SendToChain(void* socket, ChainMessage& message);
  // True if something was received.
  bool ReceiveFromChains();
  // nullptr if it cannot be opened.
  void* ChainSocket(const std::string& endpoint);
  void CloseIdleChains();
  void PublishStatus();

  net::Context& context_;
  const LaneOptions options_;
  const EventFn on_event_;
  std::string endpoint_;
  net::UniqueFd wake_;
  int socket_fd_ = -1;  // libzmq's; readable when the socket may have news

  // The lane's thread only (its creator's before the thread starts).
  std::unique_ptr<void, SocketCloser> socket_;
  struct Chain {
    std::unique_ptr<void, SocketCloser> socket;
    int fd = -1;
  };
  std::map<std::string, Chain> chains_;  // by endpoint
  std::set<std::string> denied_;         // endpoints that have no business to be in a chain
  LaneCore core_;
  std::vector<ChainMessage> chain_messages_;
  std::vector<pollfd> polled_;
  std::int64_t next_chain_tick_ms_ = 0;
  std::uint64_t unsent_chain_ = 0;
  std::vector<LaneReply> replies_;
  std::size_t unanswered_bytes_ = 0;  // received since the last Flush
  std::uint64_t bad_framing_ = 0;
  std::uint64_t unroutable_ = 0;
  std::uint64_t slow_peer_ = 0;
  std::uint64_t messages_ = 0;
  net::SparseLog refusals_{"requests with the token of another job were refused"};

  mutable std::mutex mutex_;
  std::vector<Command> commands_;  // guarded
  LaneStatus status_;              // guarded

  std::atomic<std::int64_t> last_round_ms_;  // a lone number, nothing is published with it
  std::atomic<bool> stopping_{false};        // set once; the wake-up follows it
  std::thread thread_;
};

}  // namespace ps::server
