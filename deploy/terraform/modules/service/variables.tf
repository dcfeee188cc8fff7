variable "name" {
  description = "Name of everything here."
  type        = string

  validation {
    condition     = length(var.name) <= 32
    error_message = "name has at most 32 characters, as load balancers want it."
  }
}

variable "image" {
  description = "The image that the service starts with, by digest; its models are in it (target bundled)."
  type        = string
}

variable "execution_role_arn" {
  description = "What the platform starts tasks as."
  type        = string
}

variable "task_role_arn" {
  description = "What the task itself is."
  type        = string
}

variable "vpc_id" {
  description = "The network to live in."
  type        = string
}

variable "task_subnet_ids" {
  description = "Private subnets for the tasks."
  type        = list(string)
}

variable "balancer_subnet_ids" {
  description = "Subnets for the load balancer."
  type        = list(string)
}

variable "certificate_arn" {
  description = "ACM certificate of the name that callers use."
  type        = string
}

variable "public" {
  description = "Whether the load balancer has a public address."
  type        = bool
}

variable "caller_cidrs" {
  description = "Networks that may call."
  type        = list(string)
}

variable "access_log_bucket" {
  description = "Bucket for the load balancer's access logs; null writes none."
  type        = string
}

variable "cpu" {
  description = "CPU units of one task."
  type        = number
}

variable "memory" {
  description = "MiB of one task."
  type        = number
}

variable "settings" {
  description = "Settings of the server by their key."
  type        = map(string)
}

variable "drain_seconds" {
  description = "Seconds that accepted requests get to finish."
  type        = number
}

variable "min_tasks" {
  description = "Tasks that always run."
  type        = number
}

variable "max_tasks" {
  description = "Tasks at most."
  type        = number
}

variable "calls_per_task_second" {
  description = "Calls a second that one task should carry."
  type        = number
}
