#include "coordinator/shell/api_roles.h"

#include <gtest/gtest.h>
#include <yaml-cpp/yaml.h>

#include <map>
#include <string>
#include <utility>

namespace ps::coordinator {
namespace {

std::string RoleText(const Endpoint& endpoint) {
  return endpoint.role ? net::ApiRoleName(*endpoint.role) : "everybody";
}

TEST(ApiRolesTest, TheDescriptionNamesTheRoleOfEveryEndpoint) {
  const YAML::Node description = YAML::LoadFile(PS_SOURCE_DIR "/docs/openapi.yaml");
  ASSERT_TRUE(description["components"]["securitySchemes"]["token"].IsDefined());
  std::map<std::pair<std::string, std::string>, std::string> described;
  for (const auto& path : description["paths"]) {
    for (const auto& operation : path.second) {
      const auto method = operation.first.as<std::string>();
      if (method != "get" && method != "post") continue;
      const YAML::Node security = operation.second["security"];
      const auto name = path.first.as<std::string>();
      ASSERT_TRUE(security.IsSequence()) << method << " " << name << " has no security";
      ASSERT_LE(security.size(), 1u) << name;
      described[{method == "get" ? "GET" : "POST", name}] =
          security.size() == 0 ? "everybody" : security[0]["token"][0].as<std::string>();
    }
  }
  std::map<std::pair<std::string, std::string>, std::string> known;
  for (const Endpoint& endpoint : Endpoints()) {
    known[{endpoint.method, endpoint.path}] = RoleText(endpoint);
  }
  EXPECT_EQ(described, known);
}

TEST(ApiRolesTest, WhatChangesSomethingIsNotForViewers) {
  for (const Endpoint& endpoint : Endpoints()) {
    if (endpoint.method == std::string("GET")) continue;
    ASSERT_TRUE(endpoint.role.has_value()) << endpoint.path;
    EXPECT_GE(*endpoint.role, net::ApiRole::kSubmitter) << endpoint.path;
  }
}

TEST(ApiRolesTest, PathsAreTakenApartAsTheRouterDoes) {
  const auto role = [](const char* method, const char* path) {
    const Endpoint* const endpoint = FindEndpoint(method, path);
    return endpoint == nullptr ? std::string("none") : RoleText(*endpoint);
  };
  EXPECT_EQ(role("GET", "/v1/jobs/7"), "viewer");
  EXPECT_EQ(role("HEAD", "/v1/jobs/7"), "viewer");
  EXPECT_EQ(role("POST", "/v1/jobs"), "submitter");
  EXPECT_EQ(role("POST", "//v1///jobs/7/checkpoints/prune/"), "admin");
  EXPECT_EQ(role("POST", "/v1/jobs/7/checkpoints/3/pin"), "submitter");
  EXPECT_EQ(role("GET", "/healthz"), "everybody");
  EXPECT_EQ(role("POST", "/healthz"), "none");
  EXPECT_EQ(role("POST", "/v1/jobs/7"), "none");
  EXPECT_EQ(role("DELETE", "/v1/jobs/7"), "none");
  EXPECT_EQ(role("GET", "/"), "none");
  EXPECT_EQ(role("GET", ""), "none");
  EXPECT_EQ(role("GET", "/healthz/x"), "none");
}

}  // namespace
}  // namespace ps::coordinator
