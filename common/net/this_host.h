// Whether an endpoint lies on the host that asks.
#pragma once

#include <string>

namespace ps::net {

// Of an endpoint as ZeroMQ writes it: "tcp://10.0.0.7:7101", "tcp://[::1]:7101", "ipc://...". True
// if its address is one of this host's; of a name other than localhost nothing is known, and it is
// not.
bool OnThisHost(const std::string& endpoint);

}  // namespace ps::net
