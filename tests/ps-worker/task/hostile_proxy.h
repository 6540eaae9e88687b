// Two proxies that stand between a worker and a lane and do their worst, each on a thread of its
// own, from a seed.
//
// TcpProxy hands on bytes: late, in small pieces, one direction held for a while, and cuts each
// connection at any byte. MessageProxy speaks ZMTP on both sides and loses, repeats and reorders
// whole messages. After Calm() both hand on everything at once.
#pragma once

#include <atomic>
#include <cstdint>
#include <list>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <zmq.hpp>

#include "common/net/context.h"
#include "common/net/unique_fd.h"

namespace ps::worker::testing {

class TcpProxy {
 public:
  struct Faults {
    int piece_bytes_max = 4096;
    int delay_ms_max = 3;     // between two pieces
    int hold_ms_max = 300;    // of one direction, once in a while
    int cut_after_bytes = 0;  // a connection lives for up to twice as many; 0: for ever
  };

  // Listens on a free port of loopback, for a peer at `upstream` ("tcp://127.0.0.1:PORT").
  TcpProxy(const std::string& upstream, std::uint64_t seed, const Faults& faults);
  ~TcpProxy();
  TcpProxy(const TcpProxy&) = delete;
  TcpProxy& operator=(const TcpProxy&) = delete;

  const std::string& endpoint() const { return endpoint_; }
  void Calm() { calm_ = true; }
  std::uint64_t cuts() const { return cuts_; }

 private:
  struct Direction {
    std::string waiting;  // read and not yet written
    std::int64_t next_ms = 0;
  };
  struct Connection {
    net::UniqueFd client;
    net::UniqueFd server;
    Direction up;
    Direction down;
    std::int64_t bytes_left = 0;
  };

  void Run();
  void Accept();
  // False once the connection is over.
  bool Pump(Connection& connection, int from, int to, Direction& direction, std::int64_t now_ms);
  int Below(int limit) { return static_cast<int>(random_() % static_cast<unsigned>(limit)); }

  const Faults faults_;
  const int upstream_port_;
  std::string endpoint_;
  net::UniqueFd listener_;
  std::mt19937_64 random_;              // the thread's
  std::list<Connection> connections_;   // the thread's
  std::atomic<bool> calm_{false};       // set once
  std::atomic<bool> stopping_{false};   // set once
  std::atomic<std::uint64_t> cuts_{0};  // read by the test
  std::thread thread_;
};

class MessageProxy {
 public:
  struct Faults {
    int lost_percent = 5;
    int repeated_percent = 5;
    int delay_ms_max = 20;  // of each message by itself: they overtake each other
  };

  MessageProxy(const std::string& upstream, std::uint64_t seed, const Faults& faults);
  ~MessageProxy();
  MessageProxy(const MessageProxy&) = delete;
  MessageProxy& operator=(const MessageProxy&) = delete;

  const std::string& endpoint() const { return endpoint_; }
  void Calm() { calm_ = true; }
  std::uint64_t lost() const { return lost_; }
  std::uint64_t repeated() const { return repeated_; }

 private:
  void Run();

  const std::string upstream_;
  const Faults faults_;
  net::Context context_;
  zmq::socket_t front_;  // the thread's, once it runs
  std::string endpoint_;
  std::mt19937_64 random_;  // the thread's
  std::atomic<bool> calm_{false};
  std::atomic<bool> stopping_{false};
  std::atomic<std::uint64_t> lost_{0};
  std::atomic<std::uint64_t> repeated_{0};
  std::thread thread_;
};

}  // namespace ps::worker::testing
