// What lies on the host that asks.
#pragma once

#include <string>

namespace ps::net {

// Of an endpoint as ZeroMQ writes it: "tcp://10.0.0.7:7101", "tcp://[::1]:7101", "ipc://...". True
// if its address is one of this host's; of a name other than localhost nothing is known, and it is
// not.
bool OnThisHost(const std::string& endpoint);

// Of an address or name to listen on: only processes of this host can reach it. Nothing: nobody
// can.
bool IsLoopback(const std::string& host);

}  // namespace ps::net
