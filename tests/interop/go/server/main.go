// Command server serves the integration tests' service with connect-go, over HTTP/1.1 and, with prior knowledge, HTTP/2.
//
// It prints its URL once it listens, and runs until its standard input ends.
package main

import (
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"

	"interop/gen/integrationv1connect"
)

func main() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle(integrationv1connect.NewProbeServiceHandler(&probe{}))
	mux.Handle(integrationv1connect.NewOtherServiceHandler(other{}))
	server := &http.Server{Handler: mux, Protocols: new(http.Protocols)}
	server.Protocols.SetHTTP1(true)
	server.Protocols.SetUnencryptedHTTP2(true)
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	fmt.Printf("http://%v\n", listener.Addr())
	log.Fatal(server.Serve(listener))
}
