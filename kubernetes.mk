# The targets that need Docker, kubectl or helm. REGISTRY and TAG say where images go and what the charts run.
REGISTRY ?= localhost:5001/daskyard
TAG ?= 0.1.0
DEVICE ?= cpu
SYSTEM ?= daskyard-system
NAMESPACE ?= daskyard
RELEASE ?= daskyard
JOB ?= examples/california.yaml
NAME ?= $(subst _,-,$(basename $(notdir $(JOB))))
# What suits the cluster that kubectl speaks to: kind's overlays where it is kind's; for another, name files of values of your own.
CONTEXT = $(shell kubectl config current-context 2>/dev/null)
IS_KIND = $(filter kind-%,$(CONTEXT))
PLATFORM_VALUES ?= operator_config/operator.yaml $(if $(IS_KIND),operator_config/kind.yaml)
# What the MLJobs of NAMESPACE are made of. On other clusters a runtime is installed where its values are named.
RUNTIME_VALUES ?= $(if $(IS_KIND),operator_config/kind-runtime.yaml)
IMAGE_SUFFIX = $(if $(filter gpu,$(DEVICE)),-gpu)
# Of one release, since each release finds something new. It pins old libraries and so has an environment of its own.
CHECKOV ?= checkov==3.3.30
DASKJOBS := california
values = $(foreach file,$(1),--values $(file))
needs = @for tool in $(1); do command -v $$tool >/dev/null || { echo "missing: $$tool; install it, then run make $@ again" >&2; exit 1; }; done

.PHONY: images
images:  ## Build the images of jobs and operator and push them to REGISTRY (DEVICE=gpu for CUDA).
	$(call needs,docker)
	@find $(or $(filter-out http%,$(UV_FIND_LINKS)),/dev/null) -maxdepth 1 -name 'torch-*.whl' -exec cp --update {} images/wheels/ \;
	@DOCKER_BUILDKIT=1 docker build --quiet --file images/jobs/Dockerfile --build-arg DEVICE=$(DEVICE) --build-arg TORCH=$(TORCH) \
	  --build-arg GIT_COMMIT=$$(git rev-parse HEAD 2>/dev/null) --tag $(REGISTRY)/jobs:$(TAG)$(IMAGE_SUFFIX) . >/dev/null
	@DOCKER_BUILDKIT=1 docker build --quiet --file images/operator/Dockerfile --tag $(REGISTRY)/operator:$(TAG) . >/dev/null
	@docker push --quiet $(REGISTRY)/jobs:$(TAG)$(IMAGE_SUFFIX)
	@docker push --quiet $(REGISTRY)/operator:$(TAG)
	@echo "next: make deploy"

.PHONY: kind-up
kind-up: $(BIN)/ready  ## Start a kind cluster with a registry, a GPU node in name, and MinIO with the bucket demo.
	@PYTHON=$(BIN)/python operator_config/kind/up
	@echo "next: make images deploy"

.PHONY: kind-down
kind-down:  ## Delete the kind cluster with all that is in it; the registry and its images stay.
	$(call needs,kind)
	@kind delete cluster --name daskyard
	@echo "next: make kind-up for a new one; docker rm --force --volumes kind-registry to be rid of the registry too"

.PHONY: charts
charts: $(BIN)/ready  ## Make the charts ready to install: the resource definitions, the library chart.
	$(call needs,helm)
	@$(BIN)/python charts/platform/crds_from_wheel.py
	@for chart in platform runtime cluster daskjob; do helm dependency update --skip-refresh charts/$$chart >/dev/null || exit 1; done

.PHONY: charts-test
charts-test: charts .venv-checkov/ready  ## Lint the charts, run their unit tests, hold what they render against schemas, Pod Security and checkov.
	@helm unittest --help >/dev/null 2>&1 || { echo "missing: helm's plugin unittest; install it, then run make $@ again:" >&2; \
	  echo "  helm plugin install https://github.com/helm-unittest/helm-unittest" >&2; exit 1; }
	@for chart in platform runtime cluster daskjob; do \
	  helm lint --strict --quiet charts/$$chart --values charts/$$chart/ci/everything-values.yaml || exit 1; done
	@helm unittest charts/platform charts/runtime charts/cluster charts/daskjob
	@made=$$(mktemp -d) && trap 'rm -r "$$made"' EXIT && $(MAKE) --no-print-directory manifests OUT="$$made" && diff -ru examples/daskjobs "$$made" || { echo "run: make manifests" >&2; exit 1; }
	@$(BIN)/pytest --numprocesses 2 --dist loadfile tests/charts

.PHONY: controlplane
controlplane: charts  ## Run operator and controller against an API server without nodes, where there is one (../shared/testbed).
	@$(BIN)/pytest tests/controlplane

.venv-checkov/ready: kubernetes.mk | $(BIN)/ready
	@test -x .venv-checkov/bin/python || $(BIN)/uv venv --quiet --python $(BIN)/python .venv-checkov
	@$(BIN)/uv pip install --quiet --python .venv-checkov/bin/python $(CHECKOV)
	@touch $@

.PHONY: deploy
deploy: charts  ## Install or upgrade platform and runtime in the cluster of kubectl's current context.
	$(call needs,kubectl helm)
	@test -n "$(CONTEXT)" || { echo "kubectl has no current context; make one (make kind-up) or choose one (kubectl config use-context)" >&2; exit 1; }
	@helm upgrade --install $(RELEASE) charts/platform --kube-context $(CONTEXT) --namespace $(SYSTEM) --create-namespace \
	  $(call values,$(PLATFORM_VALUES)) --set image.repository=$(REGISTRY)/operator --set image.tag=$(TAG) --wait --timeout 5m
	@if [ -n "$(IS_KIND)" ]; then operator_config/kind/credentials $(NAMESPACE); fi
	@if [ -n "$(strip $(RUNTIME_VALUES))" ]; then helm upgrade --install default charts/runtime --kube-context $(CONTEXT) --namespace $(NAMESPACE) \
	  $(call values,$(RUNTIME_VALUES)) --set networkPolicy.operatorNamespace=$(SYSTEM) --set image.repository=$(REGISTRY)/jobs --set image.tag=$(TAG) \
	  $(if $(IS_KIND),--set gpuImage.tag=$(TAG)); fi
	@echo "next: make data, then make submit JOB=$(JOB)"

.PHONY: data
data: $(BIN)/ready  ## Fetch the examples' data sets into kind's MinIO.
	@operator_config/kind/with-minio operator_config/kind/data $(BIN)/daskyard
	@echo "next: make submit JOB=$(JOB)"

.PHONY: submit
submit: $(BIN)/ready  ## Run a job file, or an MLJob, on the cluster and follow it: make submit JOB=FILE [NAME=…] [NAMESPACE=…].
	@$(BIN)/daskyard submit $(JOB) --name $(NAME) --namespace $(NAMESPACE) $(if $(CONTEXT),--context $(CONTEXT))

.PHONY: manifests
manifests: charts  ## Write examples/daskjobs/*.yaml, what the daskjob chart makes of a job file.
	@for name in $(DASKJOBS); do \
	  release=$${name//_/-}; \
	  { echo "# kubectl apply -f examples/daskjobs/$$name.yaml: made by make manifests from examples/$$name.yaml and charts/daskjob."; \
	    helm template $$release charts/daskjob --namespace daskyard --values operator_config/kind-jobs.yaml --set-file job=examples/$$name.yaml; \
	  } > $(or $(OUT),examples/daskjobs)/$$name.yaml || exit 1; done

.PHONY: e2e
e2e:  ## Prove it all on a kind cluster: kind-up, images, deploy, data, then the scenarios of tests/e2e.
	@$(MAKE) --no-print-directory kind-up
	@$(MAKE) --no-print-directory images
	@$(MAKE) --no-print-directory deploy data
	@$(BIN)/pytest tests/e2e
	@echo "next: make kind-down"
