// Command client calls a server of the integration tests with connect-go, and prints a line for each case.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"
)

const (
	caseTime   = 20 * time.Second
	startTime  = 20 * time.Second
	startPause = 50 * time.Millisecond
)

// A target is what the command line tells of the server, and in which terms it is called now.
type target struct {
	url      string
	http2    bool // with prior knowledge
	async    bool // its handlers are cancelled
	unaware  bool // its handlers are not told that their clients have left
	protocol string
	codec    string
}

func (t target) String() string {
	return t.protocol + " " + t.codec
}

// A failure ends a case.
type failure string

// check ends the case unless the condition holds.
func check(condition bool, format string, values ...any) {
	if !condition {
		_, file, line, _ := runtime.Caller(1)
		panic(failure(fmt.Sprintf("%s:%d: ", filepath.Base(file), line) + fmt.Sprintf(format, values...)))
	}
}

// ok ends the case if there is an error.
func ok(err error) {
	if err != nil {
		_, file, line, _ := runtime.Caller(1)
		panic(failure(fmt.Sprintf("%s:%d: %v", filepath.Base(file), line, err)))
	}
}

// guarded tells what has ended the function early.
func guarded(run func()) (err error) {
	defer func() {
		switch reason := recover().(type) {
		case nil:
		case failure:
			err = fmt.Errorf("%s", string(reason))
		default:
			stack := make([]byte, 4096)
			err = fmt.Errorf("panic: %v\n%s", reason, stack[:runtime.Stack(stack, false)])
		}
	}()
	run()
	return nil
}

// parallel runs the function so many times at once.
func parallel(times int, run func(index int)) {
	failures := make(chan error, times)
	var group sync.WaitGroup
	for index := range times {
		group.Add(1)
		go func() {
			defer group.Done()
			failures <- guarded(func() { run(index) })
		}()
	}
	group.Wait()
	close(failures)
	for err := range failures {
		ok(err)
	}
}

// runCase prints how the case went, and tells whether it went well.
func runCase(on target, each testCase) bool {
	began := time.Now()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	run := &caseRun{target: on, ctx: ctx}
	ended := make(chan error, 1)
	go func() {
		err := guarded(func() { each.run(run) })
		run.close()
		ended <- err
	}()
	var err error
	select {
	case err = <-ended:
	case <-time.After(caseTime):
		err = fmt.Errorf("not over after %v", caseTime)
	}
	if err != nil {
		fmt.Printf("FAIL  %v: %s: %v\n", on, each.name, err)
		return false
	}
	fmt.Printf("ok    %v: %s (%d ms)\n", on, each.name, time.Since(began).Milliseconds())
	return true
}

// waitUntilServing gives the server time to start.
func waitUntilServing(on target) error {
	run := &caseRun{target: on, ctx: context.Background()}
	defer run.close()
	until := time.Now().Add(startTime)
	for {
		ctx, cancel := context.WithDeadline(run.ctx, until)
		_, err := run.client().other.Ping(ctx, connect.NewRequest(ping("")))
		cancel()
		if err == nil || time.Now().After(until) {
			return err
		}
		time.Sleep(startPause)
	}
}

func main() {
	var on target
	flag.StringVar(&on.url, "url", "", "the base URL of the server")
	flag.BoolVar(&on.http2, "http2", false, "call it with HTTP/2, with prior knowledge; else with HTTP/1.1")
	flag.BoolVar(&on.async, "async", false, "its handlers are asynchronous, and so are cancelled")
	flag.BoolVar(&on.unaware, "unaware", false, "it does not tell its handlers that their clients have left")
	protocols := flag.String("protocols", "connect,grpc,grpc-web", "the protocols that it is called in")
	only := flag.String("only", "", "what the names of the cases have to contain")
	flag.Parse()

	on.protocol, on.codec = "connect", "proto"
	if err := waitUntilServing(on); err != nil {
		fmt.Printf("FAIL  the server does not serve: %v\n", err)
		os.Exit(1)
	}
	total, failed := 0, 0
	for _, on.protocol = range strings.Split(*protocols, ",") {
		for _, on.codec = range []string{"proto", "json"} {
			for _, each := range cases {
				if each.suits(on) && strings.Contains(each.name, *only) {
					total++
					if !runCase(on, each) {
						failed++
					}
				}
			}
		}
	}
	fmt.Printf("%d cases, %d failed\n", total, failed)
	if failed > 0 || total == 0 {
		os.Exit(1)
	}
}
