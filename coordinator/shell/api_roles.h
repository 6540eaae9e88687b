// Which role each endpoint of the REST API wants. docs/openapi.yaml says the same; a test compares.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "common/net/api_tokens.h"

namespace ps::coordinator {

struct Endpoint {
  const char* method;
  const char* path;                  // "/v1/jobs/{job}"
  std::optional<net::ApiRole> role;  // nothing: everybody
  bool owners = false;               // a submitter only for jobs of his own
};

std::span<const Endpoint> Endpoints();

// Null if there is none; what is not here is not answered to anybody. HEAD counts as GET.
const Endpoint* FindEndpoint(const std::string& method, const std::string& path);

// What is between the slashes.
std::vector<std::string> SplitPath(const std::string& path);

}  // namespace ps::coordinator
