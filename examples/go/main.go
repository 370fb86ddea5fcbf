// Prints an answer as it comes: MODEL PROMPT [MAX_TOKENS]. The environment names everything else;
// see examples/README.md.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"time"

	v1 "github.com/anabranch/anabranch/go/anabranch/v1"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

func setting(name, otherwise string) string {
	if value := os.Getenv(name); value != "" {
		return value
	}
	return otherwise
}

// TLS when ANABRANCH_TLS_CA_FILE is set, mutual TLS when a certificate and its key are too.
func dial(target string) (*grpc.ClientConn, error) {
	var options []grpc.DialOption
	if file := os.Getenv("ANABRANCH_SERVICE_CONFIG_FILE"); file != "" {
		retries, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		options = append(options, grpc.WithDefaultServiceConfig(string(retries)))
	}
	caFile := os.Getenv("ANABRANCH_TLS_CA_FILE")
	if caFile == "" {
		return grpc.Dial(target, append(options, grpc.WithInsecure())...)
	}
	pem, err := os.ReadFile(caFile)
	if err != nil {
		return nil, err
	}
	config := &tls.Config{RootCAs: x509.NewCertPool()}
	config.RootCAs.AppendCertsFromPEM(pem)
	if certFile := os.Getenv("ANABRANCH_TLS_CERT_FILE"); certFile != "" {
		own, err := tls.LoadX509KeyPair(certFile, os.Getenv("ANABRANCH_TLS_KEY_FILE"))
		if err != nil {
			return nil, err
		}
		config.Certificates = []tls.Certificate{own}
	}
	return grpc.Dial(target, append(options, grpc.WithTransportCredentials(credentials.NewTLS(config)))...)
}

// A token is good for minutes: whoever runs longer fetches the next one at 80 % of expires_in.
func authorize(ctx context.Context) (context.Context, error) {
	secret, err := os.ReadFile(os.Getenv("ANABRANCH_CLIENT_SECRET_FILE"))
	if err != nil {
		return nil, err
	}
	channel, err := dial(setting("ANABRANCH_AUTH_TARGET", "127.0.0.1:50054"))
	if err != nil {
		return nil, err
	}
	defer channel.Close()
	soon, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	issued, err := v1.NewAuthServiceClient(channel).IssueToken(soon, &v1.IssueTokenRequest{
		ClientId:     os.Getenv("ANABRANCH_CLIENT_ID"),
		ClientSecret: strings.TrimSpace(string(secret)),
	})
	if err != nil {
		return nil, err
	}
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+issued.AccessToken), nil
}

func ask(ctx context.Context, router v1.ModelServiceClient, request *v1.GenerateRequest) error {
	ctx, cancel := context.WithTimeout(ctx, 60*time.Second)
	defer cancel()
	ctx, err := authorize(ctx)
	if err != nil {
		return err
	}
	stream, err := router.StreamGenerate(ctx, request)
	if err != nil {
		return err
	}
	for last := (*v1.GenerateChunk)(nil); ; {
		chunk, err := stream.Recv()
		if err == io.EOF {
			fmt.Println()
			receipt, usage := last.GetReceipt(), last.GetUsage()
			fmt.Fprintf(os.Stderr, "receipt: %v %s, %d tokens\n",
				receipt.GetTier(), receipt.GetBackendId(), usage.GetCompletionTokens())
			return nil
		}
		if err != nil {
			return err
		}
		fmt.Print(chunk.Text)
		last = chunk
	}
}

// Prints why a call failed. The time to wait when the service says that repeating is safe, and when.
func explain(err error) (time.Duration, bool) {
	failed := status.Convert(err)
	reason, work := failed.Code().String(), ""
	var wait time.Duration
	later := false
	for _, detail := range failed.Details() {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			reason, work = detail.Reason, detail.Metadata["work"]
		case *errdetails.RetryInfo:
			delay := detail.GetRetryDelay()
			wait = time.Duration(delay.GetSeconds())*time.Second + time.Duration(delay.GetNanos())
			later = true
		}
	}
	fmt.Fprintf(os.Stderr, "error: %s: %s\n", reason, failed.Message())
	return wait, later && work == "not_dispatched"
}

func run() int {
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, "usage: MODEL PROMPT [MAX_TOKENS]")
		return 2
	}
	limit, temperature := int32(64), float32(0)
	if len(os.Args) > 3 {
		given, err := strconv.ParseInt(os.Args[3], 10, 32)
		if err != nil {
			fmt.Fprintln(os.Stderr, "error:", err)
			return 2
		}
		limit = int32(given)
	}
	text := &v1.ContentPart{Part: &v1.ContentPart_Text{Text: os.Args[2]}}
	request := &v1.GenerateRequest{
		Model:    os.Args[1],
		Messages: []*v1.Message{{Role: v1.Role_ROLE_USER, Content: []*v1.ContentPart{text}}},
		Sampling: &v1.Sampling{Temperature: &temperature, MaxTokens: &limit},
	}
	channel, err := dial(setting("ANABRANCH_TARGET", "127.0.0.1:50051"))
	if err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		return 2
	}
	defer channel.Close()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	for again := true; ; again = false {
		err := ask(ctx, v1.NewModelServiceClient(channel), request)
		if err == nil {
			return 0
		}
		if ctx.Err() == nil {
			wait, safe := explain(err)
			if !safe || !again {
				return 1
			}
			fmt.Fprintf(os.Stderr, "once more in %v\n", wait)
			select {
			case <-time.After(wait):
				continue
			case <-ctx.Done():
			}
		}
		fmt.Fprintln(os.Stderr, "cancelled")
		return 130
	}
}

func main() {
	os.Exit(run())
}
