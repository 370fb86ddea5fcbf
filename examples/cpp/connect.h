// What both examples need before and after their call: channels, a token, Ctrl-C, readable errors.
// The environment names everything; see examples/README.md.
#pragma once

#include <google/rpc/error_details.pb.h>
#include <google/rpc/status.pb.h>
#include <grpcpp/grpcpp.h>
#include <signal.h>

#include <chrono>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <memory>
#include <mutex>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>

#include "anabranch/v1/auth.grpc.pb.h"

inline std::string setting(const char* name, const std::string& otherwise = "") {
  const char* value = std::getenv(name);
  return value != nullptr && *value != '\0' ? value : otherwise;
}

inline std::string contents(const std::string& path) {
  std::ifstream file(path);
  if (!file) throw std::runtime_error("cannot read " + path);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

// TLS when ANABRANCH_TLS_CA_FILE is set, mutual TLS when a certificate and its key are too.
inline std::shared_ptr<grpc::Channel> dial(const std::string& target) {
  grpc::ChannelArguments options;
  const std::string config = setting("ANABRANCH_SERVICE_CONFIG_FILE");
  if (!config.empty()) options.SetServiceConfigJSON(contents(config));
  const std::string ca = setting("ANABRANCH_TLS_CA_FILE");
  if (ca.empty()) return grpc::CreateCustomChannel(target, grpc::InsecureChannelCredentials(), options);
  grpc::SslCredentialsOptions tls;
  tls.pem_root_certs = contents(ca);
  if (const auto file = setting("ANABRANCH_TLS_CERT_FILE"); !file.empty()) {
    tls.pem_cert_chain = contents(file);
    tls.pem_private_key = contents(setting("ANABRANCH_TLS_KEY_FILE"));
  }
  return grpc::CreateCustomChannel(target, grpc::SslCredentials(tls), options);
}

inline void set_deadline(grpc::ClientContext& call, std::chrono::seconds seconds) {
  call.set_deadline(std::chrono::system_clock::now() + seconds);
}

// A token is good for minutes: whoever runs longer fetches the next one at 80 % of `expires_in`.
inline grpc::Status authorize(std::string& authorization) {
  anabranch::v1::IssueTokenRequest request;
  request.set_client_id(setting("ANABRANCH_CLIENT_ID"));
  std::string secret = contents(setting("ANABRANCH_CLIENT_SECRET_FILE"));
  secret.erase(secret.find_last_not_of(" \r\n") + 1);
  request.set_client_secret(secret);
  anabranch::v1::IssueTokenResponse issued;
  grpc::ClientContext call;
  set_deadline(call, std::chrono::seconds(10));
  const auto channel = dial(setting("ANABRANCH_AUTH_TARGET", "127.0.0.1:50054"));
  const auto status = anabranch::v1::AuthService::NewStub(channel)->IssueToken(&call, request, &issued);
  authorization = "Bearer " + issued.access_token();
  return status;
}

// Prints why a call failed. Seconds to wait when the service says that repeating is safe, and when.
inline std::optional<double> explain(const grpc::Status& status) {
  google::rpc::Status rich;
  google::rpc::ErrorInfo info;
  google::rpc::RetryInfo retry;
  bool named = false, later = false;
  if (rich.ParseFromString(status.error_details())) {
    for (const auto& detail : rich.details()) {
      named = detail.UnpackTo(&info) || named;
      later = detail.UnpackTo(&retry) || later;
    }
  }
  std::cerr << "error: " << (named ? info.reason() : "status " + std::to_string(status.error_code()))
            << ": " << status.error_message() << std::endl;
  const auto work = info.metadata().find("work");
  if (!later || work == info.metadata().end() || work->second != "not_dispatched") return std::nullopt;
  return retry.retry_delay().seconds() + retry.retry_delay().nanos() / 1e9;
}

// Cancels the running call on Ctrl-C. To be made before any thread is, since each inherits the mask.
class CtrlC {
 public:
  CtrlC() {
    sigset_t keys;
    sigemptyset(&keys);
    sigaddset(&keys, SIGINT);
    pthread_sigmask(SIG_BLOCK, &keys, nullptr);
    std::thread([keys, state = state_] {
      int key = 0;
      sigwait(&keys, &key);
      const std::lock_guard lock(state->mutex);
      state->pressed = true;
      if (state->call != nullptr) state->call->TryCancel();
    }).detach();
  }

  // nullptr before the call's context goes away.
  void watch(grpc::ClientContext* call) {
    const std::lock_guard lock(state_->mutex);
    state_->call = call;
    if (call != nullptr && state_->pressed) call->TryCancel();
  }

  bool pressed() const {
    const std::lock_guard lock(state_->mutex);
    return state_->pressed;
  }

 private:
  struct State {
    std::mutex mutex;
    bool pressed = false;
    grpc::ClientContext* call = nullptr;
  };
  std::shared_ptr<State> state_ = std::make_shared<State>();
};
