// The ZeroMQ context of a process, and the lock on its doors.
//
// After Secure() every socket speaks CURVE (RFC 26/ZMTP-CURVE) and nothing else: what is sent is
// encrypted, each side knows the key of the other, and a listening socket admits only keys that the
// list of trusted keys (node_keys.h) has in a role that it is for. The list is read again within a
// second when its file changes: who is not in it any more makes no new connection, and what it
// sends over one that it has is not taken. Endpoints carry the key that must answer there:
// "tcp://...|KEY". Without Secure() nobody is asked for anything.
//
// libzmq itself lets everybody in unless somebody answers its questions (RFC 27/ZAP), without a
// word if nobody does; so Secure() tries a key of its own making, and fails if that is admitted.
//
// Declare it before all sockets: its destructor waits until they are gone. Any thread, but sockets
// are for theirs.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <zmq.hpp>

#include "common/net/node_keys.h"
#include "common/result.h"

namespace ps::net {

inline constexpr int kHandshakeFailures = ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL |
                                          ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL |
                                          ZMQ_EVENT_HANDSHAKE_FAILED_AUTH;
inline constexpr char kHandshakeFailedText[] =
    ": a handshake failed: the peer has no key, does not know ours, or repeats what another one "
    "said";

// Files: of this process's own key pair, and of those that it trusts.
struct SecurityOptions {
  std::string key;
  std::string trusted;

  bool secure() const { return !key.empty(); }
};

class Context {
 public:
  explicit Context(int io_threads = 1);
  ~Context();
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;

  void* handle() { return context_.handle(); }
  zmq::context_t& zmq() { return context_; }  // for sockets of cppzmq

  // Once, before the first socket; nothing if `options` name no key. As ReadKeyFile() and
  // TrustedKeys::ReadFile(); kDenied if the own key is not in the list.
  Status Secure(const SecurityOptions& options);
  bool secure() const { return gate_ != nullptr; }

  // ---- for sockets, right after they were made

  // Admits peers of these roles.
  Status Listen(void* socket, std::span<const Role> admitted);
  // Logs handshakes that fail with a listening socket until it is closed. A socket has one monitor;
  // who has one of his own asks it for kHandshakeFailures too, and calls NoteRefusal().
  Status LogFailures(void* socket, const std::string& name);
  void NoteRefusal(const std::string& why);
  // What others must connect to in order to reach an address that a socket of ours listens on.
  std::string Advertised(const std::string& address) const;
  // Readies the socket for a connection to `endpoint`, and returns the address. kDenied if the
  // key there is not one of these roles, or there is none.
  Result<std::string> Reach(void* socket, const std::string& endpoint, std::span<const Role> roles);
  // Who sent the message may (still) be here. Any frame of it.
  bool Trusts(zmq_msg_t* frame);
  // Who that is, for people: "10.0.0.7", "the worker node3 at 10.0.0.7".
  std::string Sender(zmq_msg_t* frame);

  // Connections and messages that were refused.
  std::uint64_t refused() const;

 private:
  class Gate;

  zmq::context_t context_;
  std::unique_ptr<Gate> gate_;
};

// Every socket that listens or connects must have this set. libzmq 4.3.4 aborts the process
// (zmtp_engine.cpp, process_routing_id_msg) when junk looks like the routing id of a ZMTP 1.0
// or 2.0 peer and its pipe is gone already. With a ZAP domain it refuses those protocols instead;
// no ZAP handler is needed for that. `socket` is the libzmq handle; false if libzmq refuses the
// option.
bool RefuseOldProtocols(void* socket);

}  // namespace ps::net
