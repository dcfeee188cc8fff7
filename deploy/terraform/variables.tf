variable "region" {
  description = "AWS region."
  type        = string

  validation {
    condition     = can(regex("^[a-z]{2}(-[a-z]+)+-[0-9]$", var.region))
    error_message = "region is the name of an AWS region, such as eu-central-1."
  }
}

variable "environment" {
  description = "What this installation is for; part of every name."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{0,15}$", var.environment))
    error_message = "environment has at most 16 small letters, digits and dashes, and begins with a letter."
  }
}

variable "image_digest" {
  description = "Digest of the image that the service starts with; later ones come from the pipeline. A digest and no tag: what was scanned and signed is what runs."
  type        = string

  validation {
    condition     = can(regex("^sha256:[0-9a-f]{64}$", var.image_digest))
    error_message = "image_digest is sha256: and 64 hexadecimal digits."
  }
}

variable "vpc_id" {
  description = "The network to live in; it exists already."
  type        = string

  validation {
    condition     = can(regex("^vpc-[0-9a-f]+$", var.vpc_id))
    error_message = "vpc_id begins with vpc-."
  }
}

variable "task_subnet_ids" {
  description = "Private subnets for the tasks, in at least two zones; they need a way to ECR, S3 and CloudWatch (NAT or endpoints)."
  type        = list(string)

  validation {
    condition     = length(distinct(var.task_subnet_ids)) >= 2
    error_message = "task_subnet_ids names at least two subnets."
  }
}

variable "balancer_subnet_ids" {
  description = "Subnets for the load balancer, in at least two zones: private ones, or public ones where public is true."
  type        = list(string)

  validation {
    condition     = length(distinct(var.balancer_subnet_ids)) >= 2
    error_message = "balancer_subnet_ids names at least two subnets."
  }
}

variable "certificate_arn" {
  description = "ACM certificate of the name that callers use; gRPC on this load balancer needs TLS."
  type        = string

  validation {
    condition     = can(regex("^arn:aws[a-z-]*:acm:", var.certificate_arn))
    error_message = "certificate_arn is the ARN of an ACM certificate."
  }
}

variable "public" {
  description = "Whether the load balancer has a public address. Off unless asked for; switch on tokens with it."
  type        = bool
  default     = false
}

variable "caller_cidrs" {
  description = "Networks that may call. None by default: name them."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for cidr in var.caller_cidrs : can(cidrhost(cidr, 0))])
    error_message = "caller_cidrs holds networks such as 10.0.0.0/16."
  }

  validation {
    condition     = var.public || !contains(var.caller_cidrs, "0.0.0.0/0")
    error_message = "caller_cidrs opens the service to everybody, and public is false: say which you mean."
  }
}

variable "access_log_bucket" {
  description = "Bucket for the load balancer's access logs; null writes none."
  type        = string
  default     = null
}

variable "cpu" {
  description = "CPU units of one task; 1024 is one CPU. Whole CPUs: the engine takes as many threads as there are."
  type        = number
  default     = 2048

  validation {
    condition     = contains([1024, 2048, 4096, 8192, 16384], var.cpu)
    error_message = "cpu is 1024, 2048, 4096, 8192 or 16384."
  }
}

variable "memory" {
  description = "MiB of one task. 160 and 2.1 times the item table, and room (docs/capacity.md). Fargate wants at least 2 GiB a CPU."
  type        = number
  default     = 4096

  validation {
    condition     = var.memory >= 2048 && var.memory % 1024 == 0
    error_message = "memory is a multiple of 1024, at least 2048."
  }
}

variable "settings" {
  description = "Settings of docs/settings.md, by their key."
  type        = map(string)
  default     = {}

  validation {
    condition     = alltrue([for key in keys(var.settings) : can(regex("^(RECOMMENDER|OTEL)_[A-Z0-9_]+$", key))])
    error_message = "settings has keys such as RECOMMENDER_MAX_BATCH_SIZE."
  }

  validation {
    condition     = !contains(keys(var.settings), "RECOMMENDER_DRAIN_GRACE_MS")
    error_message = "drain_seconds sets RECOMMENDER_DRAIN_GRACE_MS and what must match it."
  }
}

variable "drain_seconds" {
  description = "Seconds that accepted requests get to finish. Fargate kills after 120, and ending takes a few itself."
  type        = number
  default     = 20

  validation {
    condition     = var.drain_seconds >= 1 && var.drain_seconds <= 100
    error_message = "drain_seconds is between 1 and 100."
  }
}

variable "min_tasks" {
  description = "Tasks that always run."
  type        = number
  default     = 2

  validation {
    condition     = var.min_tasks >= 1
    error_message = "min_tasks is at least 1; two survive the loss of a zone."
  }
}

variable "max_tasks" {
  description = "Tasks at most: what this may cost."
  type        = number
  default     = 10

  validation {
    condition     = var.max_tasks >= var.min_tasks
    error_message = "max_tasks is at least min_tasks."
  }
}

variable "calls_per_task_second" {
  description = "Calls a second that one task should carry: measure it (docs/capacity.md), then take 60 % of it."
  type        = number
  default     = 1000

  validation {
    condition     = var.calls_per_task_second > 0
    error_message = "calls_per_task_second is above 0."
  }
}

variable "github_repository" {
  description = "owner/name of the repository whose pipeline may deploy; null makes no such role."
  type        = string
  default     = null

  validation {
    condition     = var.github_repository == null || can(regex("^[A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+$", var.github_repository))
    error_message = "github_repository is owner/name."
  }
}
