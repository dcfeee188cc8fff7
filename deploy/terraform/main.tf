# recommender on ECS Fargate: an image registry, identities with the least they need, and the service.
terraform {
  required_version = ">= 1.11.0, < 2.0.0"
  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = ">= 6.0.0, < 7.0.0"
    }
  }

  # Bucket, region and key come from `terraform init -backend-config=backend.hcl`: the bucket is shared and not ours.
  # The lock is an object beside the state (Terraform 1.11 and newer need no table).
  backend "s3" {
    key          = "recommender/terraform.tfstate"
    encrypt      = true
    use_lockfile = true
  }
}

provider "aws" {
  region = var.region

  default_tags {
    tags = {
      service     = "recommender"
      environment = var.environment
      managed-by  = "terraform"
    }
  }
}

locals {
  name = "recommender-${var.environment}"
}

module "registry" {
  source = "./modules/registry"
  name   = local.name
}

module "identity" {
  source            = "./modules/identity"
  name              = local.name
  repository_arn    = module.registry.repository_arn
  log_group_arn     = module.service.log_group_arn
  service_arn       = module.service.service_arn
  github_repository = var.github_repository
  environment       = var.environment
}

module "service" {
  source                = "./modules/service"
  name                  = local.name
  image                 = "${module.registry.repository_url}@${var.image_digest}"
  execution_role_arn    = module.identity.execution_role_arn
  task_role_arn         = module.identity.task_role_arn
  vpc_id                = var.vpc_id
  task_subnet_ids       = var.task_subnet_ids
  balancer_subnet_ids   = var.balancer_subnet_ids
  certificate_arn       = var.certificate_arn
  public                = var.public
  caller_cidrs          = var.caller_cidrs
  access_log_bucket     = var.access_log_bucket
  cpu                   = var.cpu
  memory                = var.memory
  settings              = var.settings
  drain_seconds         = var.drain_seconds
  min_tasks             = var.min_tasks
  max_tasks             = var.max_tasks
  calls_per_task_second = var.calls_per_task_second
}
