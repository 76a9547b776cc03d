// Package tools pins the programs that build and check the project, in a module of their own so that what they
// depend on stays out of the project's go.mod. See the tool lines of go.mod and the Makefile's use of them.
package tools
