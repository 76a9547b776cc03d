// Package compose brings docker-compose.yml up under a project name of its own, uses it from outside as a user would,
// breaks it and checks that nothing was lost or done twice. It needs a Docker engine and is run by `make test-compose`:
// build tag compose.
//
// Images come from the variables that docker-compose.yml reads (POSTGRES_IMAGE and so on); images/ makes stand-ins where no
// registry can be reached.
package compose
