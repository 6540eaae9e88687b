#include "coordinator/shell/api_roles.h"

#include <algorithm>
#include <cstddef>

namespace ps::coordinator {
namespace {

constexpr auto kViewer = net::ApiRole::kViewer;
constexpr auto kSubmitter = net::ApiRole::kSubmitter;
constexpr auto kAdmin = net::ApiRole::kAdmin;

// A viewer changes nothing. A submitter starts jobs, ends his own, and keeps checkpoints. An admin
// also does what cannot be undone, what concerns nodes, and what has servers connect to a given
// address.
constexpr Endpoint kEndpoints[] = {
    // For load balancers, which have no token; it says nothing but that the process lives.
    {"GET", "/healthz", std::nullopt},
    // Has the names of nodes and jobs; Prometheus can send a token.
    {"GET", "/metrics", kViewer},
    {"GET", "/v1/version", kViewer},
    {"GET", "/v1/nodes", kViewer},
    {"POST", "/v1/nodes/{node}", kAdmin},
    {"GET", "/v1/jobs", kViewer},
    {"POST", "/v1/jobs", kSubmitter},
    {"GET", "/v1/jobs/{job}", kViewer},
    {"POST", "/v1/jobs/{job}/rebalance", kSubmitter, true},
    {"POST", "/v1/jobs/{job}/scale", kSubmitter, true},
    {"POST", "/v1/jobs/{job}/cancel", kSubmitter, true},
    {"POST", "/v1/jobs/{job}/suspend", kSubmitter, true},
    {"POST", "/v1/jobs/{job}/resume", kSubmitter, true},
    {"GET", "/v1/jobs/{job}/events", kViewer},
    {"GET", "/v1/jobs/{job}/logs", kViewer},
    {"GET", "/v1/jobs/{job}/checkpoints", kViewer},
    {"POST", "/v1/jobs/{job}/checkpoints/{round}/pin", kSubmitter},
    {"POST", "/v1/jobs/{job}/checkpoints/{round}/unpin", kSubmitter},
    {"POST", "/v1/jobs/{job}/checkpoints/prune", kAdmin},
    {"POST", "/v1/jobs/{job}/rollback", kAdmin},
    {"POST", "/v1/imports", kAdmin},
};

bool Matches(const Endpoint& endpoint, const std::vector<std::string>& parts) {
  const std::vector<std::string> pattern = SplitPath(endpoint.path);
  return std::equal(pattern.begin(), pattern.end(), parts.begin(), parts.end(),
                    [](const std::string& wanted, const std::string& part) {
                      return wanted.front() == '{' || wanted == part;
                    });
}

}  // namespace

std::span<const Endpoint> Endpoints() { return kEndpoints; }

const Endpoint* FindEndpoint(const std::string& method, const std::string& path) {
  const std::vector<std::string> parts = SplitPath(path);
  for (const Endpoint& endpoint : kEndpoints) {
    const bool same =
        method == endpoint.method || (method == "HEAD" && endpoint.method == std::string("GET"));
    if (same && Matches(endpoint, parts)) return &endpoint;
  }
  return nullptr;
}

std::vector<std::string> SplitPath(const std::string& path) {
  std::vector<std::string> parts;
  std::size_t begin = 0;
  while (begin < path.size()) {
    const std::size_t end = std::min(path.find('/', begin), path.size());
    if (end > begin) parts.push_back(path.substr(begin, end - begin));
    begin = end + 1;
  }
  return parts;
}

}  // namespace ps::coordinator
