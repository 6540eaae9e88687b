// Where the leading coordinator is, from the nodes below /coordinators. Pure functions, any thread.
#pragma once

#include <string>

#include "common/zookeeper/watcher.h"

namespace ps::zk {

// The control endpoint from the data of a coordinator's node; empty if it has none.
std::string ControlEndpointOf(const std::string& node_data);

// That of the leader, which is the node with the lowest number; empty if there is none. A node
// without an endpoint is a warning in the log.
std::string LeaderEndpoint(const ChildrenWatcher::Children& coordinators);

}  // namespace ps::zk
