variable "name" {
  description = "Prefix of the roles' names."
  type        = string
}

variable "environment" {
  description = "The GitHub environment whose jobs may deploy; its approvals stand before every deployment."
  type        = string
}

variable "repository_arn" {
  description = "The image repository that tasks pull from and the pipeline pushes to."
  type        = string
}

variable "log_group_arn" {
  description = "The log group that tasks write to."
  type        = string
}

variable "service_arn" {
  description = "The service that the pipeline rolls."
  type        = string
}

variable "github_repository" {
  description = "owner/name of the repository whose pipeline may deploy; null makes no such role."
  type        = string
}
